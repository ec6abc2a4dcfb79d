"""What the controller tells of rollouts, on Ray's metrics port."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from replicas import metrics
from replicas.ray_metrics import Make, in_actor


class Metrics:
    def __init__(self, model: str, make: Make = in_actor) -> None:
        self._model = model
        self._phase, self._share = make(metrics.ROLLOUT_PHASE), make(metrics.ROLLOUT_SHARE)
        self._rollouts, self._swap = make(metrics.ROLLOUTS), make(metrics.SWAP_SECONDS)
        self._outcomes: Counter[str] = Counter()  # since this process began
        self._told: str | None = None  # the phase that stands at 1
        self._shared: set[str] = set()  # versions whose share was told
        self._swap_s: float | None = None

    def looked(self, phase: str | None, shares: Mapping[str, float]) -> None:
        """To be told with each look, or Ray forgets it. `phase` None: there was no rollout."""
        if self._told is not None and self._told != phase:
            self._phase.tell(0.0, self._model, self._told)
        if phase is not None:
            self._phase.tell(1.0, self._model, phase)
        self._told = phase
        for version in self._shared - shares.keys():
            self._share.tell(0.0, self._model, version)
        for version, share in shares.items():
            self._share.tell(share, self._model, version)
        self._shared = set(shares)
        if self._swap_s is not None:
            self._swap.tell(self._swap_s, self._model)

    def ended(self, outcome: str) -> None:
        self._outcomes[outcome] += 1
        self._rollouts.tell(self._outcomes[outcome], self._model, outcome)

    def swapped(self, seconds: float) -> None:
        self._swap_s = seconds
