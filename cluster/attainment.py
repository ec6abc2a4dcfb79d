"""Which requests met the SLO, told to the router: the autoscaling goes by it."""

from collections.abc import Callable

from cluster.journal import Ended, Listener
from cluster.request_metrics import Slo


class Attainment(Listener):
    """Says of each request that ended whether it was served within the SLO; of one that its client gave up, nothing."""

    def __init__(self, slo: Slo, tell: Callable[[bool], None]) -> None:
        self._slo = slo
        self._tell = tell

    def ended(self, record: Ended) -> None:
        if (met := self._slo.met_by(record)) is not None:
            self._tell(met)
