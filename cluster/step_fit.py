"""What an engine step costs on a replica, learned from its load reports. Pure.

`step_s = base_s + prefill_s * prefill tokens + decode_s * decoding requests`: linear least squares over the recent
past, so that a replica on a slower or a shared machine is known by what it does. Decoding costs less per request in
larger batches; forgetting keeps the line tangent to where the replica works now.
"""

from replicas.messages import Work

FORGET = 0.97  # weight of the past at each report; at 20 reports a second its half-life is a second
RIDGE = 1e-3  # pull towards the solution before, as a share of the data's weight: what does not vary stays what it was
_TOKENS = 1000.0  # scales of the features, so that the ridge means the same for each
_REQUESTS = 100.0

Vector = tuple[float, float, float]


class StepFit:
    """The three costs of one replica. `known` is False until there is something to go by."""

    def __init__(self) -> None:
        self._last: Work | None = None
        # Symmetric sums of the least squares: x xT (six), x y (three), both decayed.
        self._xx = [0.0] * 6
        self._xy = [0.0] * 3
        self._costs: Vector = (0.0, 0.0, 0.0)
        self._stale = False

    @property
    def known(self) -> bool:
        return self._xx[0] > 0.0

    def learn(self, work: Work) -> None:
        """Takes the cumulative counters of a report; the first one only tells where they stand."""
        last, self._last = self._last, work
        if last is None:  # of a life so far, in which it may have been another replica than it is now
            return
        steps = work.steps - last.steps
        done = (
            work.prefill_tokens - last.prefill_tokens,
            work.decode_tokens - last.decode_tokens,
            work.step_s - last.step_s,
        )
        if steps <= 0 or min(done) < 0:  # nothing was done, or the core is another one
            return
        prefill, decoding, each = done[0] / steps / _TOKENS, done[1] / steps / _REQUESTS, done[2] / steps
        xx = (1.0, prefill, decoding, prefill * prefill, prefill * decoding, decoding * decoding)
        xy = (each, prefill * each, decoding * each)
        self._xx = [FORGET * old + steps * new for old, new in zip(self._xx, xx, strict=True)]
        self._xy = [FORGET * old + steps * new for old, new in zip(self._xy, xy, strict=True)]
        self._stale = True

    def step_s(self, prefill_tokens: float, decoding: float) -> float:
        """Seconds that a step takes; 0 when nothing is known."""
        base, prefill, decode = self._solution()
        return base + prefill * prefill_tokens / _TOKENS + decode * decoding / _REQUESTS

    @property
    def prefill_token_s(self) -> float:
        """Seconds that a prompt token adds to a step."""
        return self._solution()[1] / _TOKENS

    def _solution(self) -> Vector:
        if self._stale:
            self._stale = False
            self._costs = _solve(self._xx, self._xy, self._costs)
        return self._costs


def _solve(xx: list[float], xy: list[float], before: Vector) -> Vector:
    """Ridge regression towards `before`; a cost below zero is none."""
    ridge = RIDGE * xx[0]
    a, b, c, d, e, f = xx[0] + ridge, xx[1], xx[2], xx[3] + ridge, xx[4], xx[5] + ridge
    u, v, w = (y + ridge * old for y, old in zip(xy, before, strict=True))
    det = a * (d * f - e * e) - b * (b * f - c * e) + c * (b * e - c * d)
    base = u * (d * f - e * e) - b * (v * f - e * w) + c * (v * e - d * w)
    prefill = a * (v * f - e * w) - u * (b * f - c * e) + c * (b * w - c * v)
    decode = a * (d * w - v * e) - b * (b * w - c * v) + u * (b * e - c * d)
    return max(base / det, 0.0), max(prefill / det, 0.0), max(decode / det, 0.0)
