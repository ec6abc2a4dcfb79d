"""The engine that is measured: one core in a process of its own, its scheduler's limits changed between trials.

`python -m ops.tune.engine SPEC_JSON PARENT_PID` answers each question (a JSON line) with a `Pace` or a `Seen`;
`TunedEngine` starts it. What drives the core is what `replicas.core_host` does between two steps, without gateways:
requests are added when they are due, and each step's frame is decoded for the first tokens that it holds.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from experts.linux import die_with_parent
from ops.child import Child, Died
from ops.errors import UserError
from ops.tune.attainment import Slo, Verdict, arrivals, judged
from replicas.engine_host import build_core, core_environment
from replicas.engine_spec import EngineSpec
from replicas.messages import Work as Done

if TYPE_CHECKING:
    from replicas.core import StepOutput
    from replicas.vllm_core import VllmCore

_LOOK_S = 0.1  # how often requests in flight are looked at for those that are late already
_ASLEEP_S = 0.001  # at most, while nothing runs


class EngineBroke(UserError):
    """The engine could not be loaded so, or died. One sentence."""


class Work(msgspec.Struct, frozen=True):
    """Requests of `prompt` random tokens below `vocabulary`, each to exactly `output` greedy tokens."""

    prompt: int
    output: int
    vocabulary: int


class Limits(msgspec.Struct, frozen=True):
    """Of the scheduler, as `VllmCore.limit`."""

    batched_tokens: int
    seqs: int
    prompt_chunk: int
    graph_tokens: int = 0


class Burst(msgspec.Struct, frozen=True, tag=True):
    """As many requests at a time as `in_flight`, for so long: it warms an engine, and tells about what it can do."""

    work: Work
    in_flight: int
    seconds: float


class Trial(msgspec.Struct, frozen=True, tag=True):
    """Requests at `rate` a second. Those due in `seconds` seconds count, after `warm_s` seconds of others."""

    work: Work
    limits: Limits
    rate: float
    ttft_s: float
    tpot_s: float
    warm_s: float
    seconds: float


class Pace(msgspec.Struct, frozen=True, tag=True):
    requests_per_s: float


class Seen(msgspec.Struct, frozen=True, tag=True):
    """`attained`: share of `counted` requests within the SLO; a bound if the trial was ended as soon as it was sure."""

    attained: float
    counted: int
    took_s: float
    ttft_p50_s: float | None
    tpot_p50_s: float | None
    steps: int
    step_ms: float | None  # mean of the steps
    tokens_per_step: float | None


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """The engine is ready: the limits that it was loaded with."""

    batched_tokens: int
    seqs: int


class Broke(msgspec.Struct, frozen=True, tag=True):
    reason: str


_QUESTION = msgspec.json.Decoder(Burst | Trial)
_ANSWER: msgspec.json.Decoder[Pace | Seen | Loaded | Broke] = msgspec.json.Decoder(Pace | Seen | Loaded | Broke)


# -- the measuring process --------------------------------------------------------------------------------------------


class TunedEngine:
    """This module in a process of its own, as a context manager. EngineBroke: it could not be loaded."""

    def __init__(self, spec: EngineSpec, limit_s: float, log: Path | None = None) -> None:
        """`limit_s`: seconds that loading may take. `log`: where what the engine says is kept."""
        self._spec, self._limit_s, self._log = spec, limit_s, log
        self.load_s = 0.0  # it took

    def __enter__(self) -> TunedEngine:
        began = time.monotonic()
        arguments = [msgspec.json.encode(self._spec).decode()]
        environment = os.environ | core_environment(self._spec)
        self._child = Child("the engine", "ops.tune.engine", arguments, environment, self._log)
        try:
            loaded = _understood(self._child.hear, self._limit_s)
        except BaseException:
            self._child.end()
            raise
        assert isinstance(loaded, Loaded)
        self.loaded, self.load_s = loaded, time.monotonic() - began
        return self

    def pace(self, burst: Burst, limit_s: float) -> float:
        """Requests/s. EngineBroke: it died of it, or gave no answer in time."""
        answer = _understood(self._child.ask, msgspec.json.encode(burst), limit_s)
        assert isinstance(answer, Pace)
        return answer.requests_per_s

    def measure(self, trial: Trial, limit_s: float) -> Seen:
        """EngineBroke as above."""
        answer = _understood(self._child.ask, msgspec.json.encode(trial), limit_s)
        assert isinstance(answer, Seen)
        return answer

    def __exit__(self, *_: object) -> None:
        self._child.end()


def _understood(ask: Callable[..., bytes], *arguments: Any) -> Pace | Seen | Loaded:
    try:
        answer = _ANSWER.decode(ask(*arguments))
    except Died as died:
        raise EngineBroke(str(died)) from None
    if isinstance(answer, Broke):
        raise EngineBroke(answer.reason)
    return answer


# -- the engine's process ---------------------------------------------------------------------------------------------


def main() -> None:
    die_with_parent(int(sys.argv[2]))
    told = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # vLLM logs to the standard output, which is ours

    def tell(answer: Pace | Seen | Loaded | Broke) -> None:
        told.write(msgspec.json.encode(answer) + b"\n")
        told.flush()

    try:
        core: Any = build_core(msgspec.json.decode(sys.argv[1], type=EngineSpec))
        room = core.capacity
        tell(Loaded(room.max_num_batched_tokens, room.max_num_seqs))
        driver = _Driver(core)
        for line in sys.stdin.buffer:
            question = _QUESTION.decode(line)
            tell(driver.burst(question) if isinstance(question, Burst) else driver.trial(question))
    except Exception as error:
        tell(Broke(" ".join(f"{type(error).__name__}: {error}".split())[:500]))
        raise
    finally:
        sys.stderr.flush()
    os._exit(0)  # the interpreter's own tear-down of torch takes seconds and frees nothing


class _Driver:
    """Feeds the core and steps it."""

    def __init__(self, core: VllmCore) -> None:
        from replicas.vllm_core import greedy_request, made_tokens

        self._core, self._encode, self._made = core, greedy_request, made_tokens
        self._asked = 0
        self._running: set[str] = set()

    def _requests(self, work: Work, count: int) -> list[Sequence[Any]]:
        """Ready to be added, so that making them costs no trial anything. No prompt is like another."""
        self._asked += 1
        chosen = random.Random(self._asked)
        return [
            self._encode(f"{self._asked}-{i}", chosen.choices(range(work.vocabulary), k=work.prompt), work.output)
            for i in range(count)
        ]

    def burst(self, ask: Burst) -> Pace:
        """Told by the tokens of all its steps: requests that began together end together, so that those which end
        within some seconds say less.
        """
        requests: list[Sequence[Any]] = []
        began, before = time.monotonic(), self._core.load().work
        while (took_s := time.monotonic() - began) < ask.seconds or not (
            computed := _computed(before, self._core.load().work)
        ):
            if not requests:
                requests = self._requests(ask.work, ask.in_flight)
            while requests and len(self._running) < ask.in_flight:
                self._add(requests.pop())
            self._step()
        self._clear()
        return Pace(computed / (ask.work.prompt + ask.work.output - 1) / took_s)

    def trial(self, ask: Trial) -> Seen:
        slo, limits = Slo(ask.ttft_s, ask.tpot_s), ask.limits
        self._core.limit(limits.batched_tokens, limits.seqs, limits.prompt_chunk, limits.graph_tokens)
        end_s = ask.warm_s + ask.seconds
        longest_s = slo.ttft_s + ask.work.output * slo.tpot_s
        due = arrivals(ask.rate, end_s + longest_s)
        counted = judged(due, ask.warm_s, end_s)
        verdict = Verdict(due, counted, slo, ask.work.output)
        requests = self._requests(ask.work, len(due))
        before = self._core.load().work
        began, looked, next_one = time.monotonic(), 0.0, 0
        waiting: set[str] = set()  # for their first token
        while verdict.carried is None and (now := time.monotonic() - began) < end_s + longest_s + 1.0:
            while next_one < len(due) and due[next_one] <= now:
                waiting.add(self._add(requests[next_one]))
                next_one += 1
            if now - looked >= _LOOK_S:
                verdict.now(now)
                self._core.load()  # as a host does: it lets go of what it has to tell
                looked = now
            if not self._core.has_work():
                time.sleep(_ASLEEP_S)
                continue
            outputs = self._step()
            now = time.monotonic() - began
            for output in outputs:
                if waiting:
                    for request_id, _ in self._made(output.frame):
                        if request_id in waiting:
                            waiting.discard(request_id)
                            verdict.first(_number(request_id), now)
                for request_id in output.finished:
                    verdict.ended(_number(request_id), now)
        took = time.monotonic() - began
        work = self._core.load().work
        self._clear()
        steps = work.steps - before.steps
        computed = _computed(before, work)
        return Seen(
            attained=verdict.attained,
            counted=len(counted),
            took_s=took,
            ttft_p50_s=statistics.median(verdict.ttft_s) if verdict.ttft_s else None,
            tpot_p50_s=statistics.median(verdict.tpot_s) if verdict.tpot_s else None,
            steps=steps,
            step_ms=1e3 * (work.step_s - before.step_s) / steps if steps else None,
            tokens_per_step=computed / steps if steps else None,
        )

    def _add(self, request: Sequence[Any]) -> str:
        request_id = self._core.add(0, request)
        self._running.add(request_id)
        return request_id

    def _step(self) -> Sequence[StepOutput]:
        outputs = self._core.step()
        for output in outputs:
            self._running.difference_update(output.finished)
        return outputs

    def _clear(self) -> None:
        """Nothing of it runs on."""
        self._core.abort(sorted(self._running))
        self._running.clear()
        while self._core.has_work():
            self._core.step()


def _computed(before: Done, after: Done) -> int:
    """Tokens of the steps between the two."""
    return after.prefill_tokens + after.decode_tokens - before.prefill_tokens - before.decode_tokens


def _number(request_id: str) -> int:
    return int(request_id.rpartition("-")[2])


if __name__ == "__main__":
    main()
