"""Replicas that are being given another version's weights, as the router knows them. Pure.

The router hands a command out with the answer to a load report, again and again until a report tells of it; from then
on the replica's own reports say how far it is. A router that was restarted learns of a swap in the same way.
"""

from dataclasses import dataclass

from replicas.messages import LoadReport, ReplicaInfo, Swap, SwapReport

CUT_OFF = ("loading", "probing")  # phases in which a replica lets no gateway in


class SwapRefused(Exception):
    """A swap cannot be begun; the message is one sentence."""


@dataclass
class _Known:
    """The last swap of one replica."""

    epoch: int  # of the life in which it was begun
    command: Swap | None  # None: this router has not given it
    was_draining: bool = False  # by an operator's wish
    report: SwapReport | None = None  # the last one

    @property
    def id(self) -> str:
        return self.command.id if self.command else self.report.id if self.report else ""


class Swaps:
    """The last swap of each replica in the roster."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._epochs: dict[str, int] = {}  # of the replicas' present lives

    def begin(self, replica_id: str, command: Swap, was_draining: bool) -> bool:
        """False: it has been given that command before. Raises SwapRefused."""
        known = self._known.get(replica_id)
        if known is not None and known.id == command.id:
            return False
        if self.is_under_way(replica_id):
            raise SwapRefused(f"{replica_id} is being given other weights already: one swap after the other")
        self._known[replica_id] = _Known(self._epochs[replica_id], command, was_draining)
        return True

    def joined(self, info: ReplicaInfo) -> None:
        """A replica's new life has begun, or this router is new."""
        self._epochs[info.replica_id] = info.epoch
        if info.swapping:
            self._known[info.replica_id] = _Known(info.epoch, None, info.draining)

    def left(self, replica_id: str) -> None:
        self._known.pop(replica_id, None)
        self._epochs.pop(replica_id, None)

    def reported(self, load: LoadReport) -> bool:
        """Takes what a replica tells. True: its swap has failed before it was touched, so it is as it was."""
        if load.swap is None:
            return False
        known = self._known.get(load.replica_id)
        if known is None:  # this router is new, and the swap over
            known = self._known[load.replica_id] = _Known(0 if load.swap.ended else load.epoch, None)
        if known.id not in ("", load.swap.id):  # the end of one before
            return False
        was_under_way = self.is_under_way(load.replica_id)
        known.report = load.swap
        return was_under_way and not self.is_under_way(load.replica_id)

    def command(self, load: LoadReport) -> Swap | None:
        """What to answer to a report."""
        known = self._known.get(load.replica_id)
        if known is None or known.epoch != load.epoch or known.report is not None:
            return None
        return known.command

    def is_under_way(self, replica_id: str) -> bool:
        """From the command on, until the replica has begun another life, or has told that it was not touched."""
        known = self._known.get(replica_id)
        if known is None or known.epoch != self._epochs.get(replica_id):
            return False
        return known.report is None or not known.report.ended or known.report.broken

    def is_cut_off(self, replica_id: str) -> bool:
        """It lets no gateway in."""
        report = self.report(replica_id)
        return report is not None and self.is_under_way(replica_id) and report.phase in CUT_OFF

    def was_draining(self, replica_id: str) -> bool:
        known = self._known.get(replica_id)
        return known is not None and known.was_draining

    def report(self, replica_id: str) -> SwapReport | None:
        """How far it is with its swap, or how its last one ended."""
        known = self._known.get(replica_id)
        if known is None:
            return None
        if known.report is None and known.command is not None:
            return SwapReport(id=known.command.id, version=known.command.version, phase="finishing")
        return known.report
