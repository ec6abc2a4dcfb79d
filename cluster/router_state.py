"""What the router knows: replicas, gateways, what waits and what runs, swaps and what is assigned. Without Ray."""

from typing import Any

import msgspec

from cluster.batcher import Batcher, ReplicaView
from cluster.draining import Candidate, DrainRefused, DrainRequest, choose
from cluster.expert_report import expert_report
from cluster.outcomes import Ending
from cluster.queue_report import queue_report
from cluster.quotas import Quotas
from cluster.router_metrics import Queue, Tally
from cluster.router_status import of_replica, state_of
from cluster.scaling_window import Decided, Report, ScalingWindow, status
from cluster.swaps import SwapRefused, Swaps
from cluster.vitals import Vitals, vitals
from replicas.assignment import Assignment
from replicas.messages import (
    Denial,
    ExpertLoad,
    Grant,
    Inbox,
    LoadReport,
    Outbox,
    ReplicaInfo,
    ReportAnswer,
    Resync,
    Swap,
    Ticket,
)

HEARTBEAT_TIMEOUT_S = 5.0  # silence after which a replica is taken out; of a killed one gateways tell at once


class RouterState:
    """What the router knows, without Ray: times are passed in, waiting is done by the actor around it."""

    def __init__(self, batcher: Batcher, max_queue: int, window: ScalingWindow | None = None) -> None:
        self._max_queue = max_queue
        self._window = window  # None: nothing scales
        self._decided: Decided | None = None
        self._batcher = batcher
        self._quotas = Quotas()
        self._roster: dict[str, ReplicaInfo] = {}
        self._roster_version = 0
        self._heard: dict[str, float] = {}  # replica id -> time of its last report
        self._experts: dict[str, ExpertLoad] = {}  # replica id -> what it told last
        self._swaps = Swaps()
        self._assignment: Assignment | None = None
        self._gateways: dict[str, str] = {}  # id -> "host:port" of its metrics
        self._grants: dict[str, list[Grant]] = {}  # gateway id -> what it is to be told
        self._denials: dict[str, list[Denial]] = {}
        self._moves: dict[str, list[str]] = {}
        self.tally = Tally()

    def join(self, info: ReplicaInfo, now: float) -> None:
        known, swapped = self._roster.get(info.replica_id), self._swaps.is_under_way(info.replica_id)
        if known is None or known.epoch < info.epoch:
            self._batcher.join(info)
            self._roster[info.replica_id] = info
            self._roster_version += 1
            self._swaps.joined(info)
            self._experts.pop(info.replica_id, None)  # of the life before, maybe with other weights
            if self._window is not None:
                self._window.joined(info)
            # What the replica itself knows of an operator's wish may be from before its swap.
            drained = self._swaps.was_draining(info.replica_id) if known and swapped else info.draining
            if drained or info.swapping:
                self._batcher.drain(info.replica_id, info.epoch)
        if self._roster[info.replica_id].epoch == info.epoch:
            self._heard[info.replica_id] = now

    def leave(self, replica_id: str, epoch: int, now: float, lost: bool = False) -> None:
        if self._batcher.leave(replica_id, epoch, now):
            self.tally.lost += lost
            del self._roster[replica_id], self._heard[replica_id]
            self._experts.pop(replica_id, None)
            self._swaps.left(replica_id)
            self._roster_version += 1
            if self._window is not None:
                self._window.left(replica_id)

    def stop(self, replica_id: str, epoch: int, now: float) -> None:
        """A replica stops and takes no more. If that is scaling in, what it runs moves at once: others have room."""
        stopped = self._roster.get(replica_id)
        self.leave(replica_id, epoch, now)
        if stopped is None or stopped.epoch != epoch or self._decided is None:
            return
        if self._taking(stopped.version) >= max(self._decided.target, 1):  # else it is replaced, or all of them stop
            self._move(replica_id)

    def _taking(self, version: str | None = None) -> int:
        """Replicas that take requests, of one version or of any."""
        return sum(not r.draining and version in (None, r.info.version) for r in self._batcher.replicas())

    def _move(self, replica_id: str) -> None:
        for gateway, request_id in self._batcher.running_on(replica_id):
            self._moves.setdefault(gateway, []).append(request_id)

    def report(self, load: LoadReport, now: float) -> bool:
        known = self._batcher.report(load)
        if known:
            self._heard[load.replica_id] = now
            if load.experts is not None:
                self._experts[load.replica_id] = load.experts
            if self._window is not None:
                self._window.reported(load)
            if self._swaps.reported(load):
                self._take_back(load.replica_id, now, self._swaps.was_draining(load.replica_id))
        return known

    def answer(self, load: LoadReport) -> ReportAnswer:
        """To a report of a replica that is known."""
        return ReportAnswer(state=self.state_of(load.replica_id), swap=self._swaps.command(load))

    def _take_back(self, replica_id: str, now: float, draining: bool = False) -> None:
        """It is granted requests again, unless it is to be `draining`; what it runs counts as before."""
        info = self._roster[replica_id]
        self._batcher.leave(replica_id, info.epoch, now)
        self._batcher.join(info)
        if draining:
            self._batcher.drain(replica_id, info.epoch)
        self._roster_version += 1  # a gateway that has lost its connection since meets it again

    def swap(self, replica_id: str, swap: Swap) -> str:
        """Has a replica given another version's weights, once; returns its id. Raises SwapRefused.

        Nothing is granted to it from here on. What it runs moves to others of its version, if any take it.
        """
        if (info := self._roster.get(replica_id)) is None:
            raise SwapRefused(f"there is no replica {replica_id}")
        if self._swaps.begin(replica_id, swap, self.state_of(replica_id) == "draining"):
            self._batcher.drain(replica_id, info.epoch)
            if self._taking(info.version):
                self._move(replica_id)
        return replica_id

    def assign(self, assigned: Assignment) -> None:
        """What is to be served. One that is older than what is known is late, and ignored."""
        if self._assignment is None or self._assignment.revision < assigned.revision:
            self._assignment = assigned
            self._batcher.set_traffic(assigned.traffic, assigned.stable)
            self._roster_version += 1  # gateways are told both

    def drain(self, asked: DrainRequest, now: float) -> str:
        """Has a replica drained, or no longer; returns its id. Raises DrainRefused."""
        replica_id = choose(asked, [Candidate(r.info.replica_id, r.draining) for r in self._batcher.replicas()])
        if self._swaps.is_under_way(replica_id):
            raise DrainRefused(f"{replica_id} is being given another version's weights; try again once it serves")
        if asked.undo:
            self._take_back(replica_id, now)
            return replica_id
        self._batcher.drain(replica_id, self._roster[replica_id].epoch)
        if asked.migrate:
            self._move(replica_id)
        return replica_id

    def state_of(self, replica_id: str) -> str:
        """As `status` has it; "gone" if it is not known."""
        return next((self._state(r) for r in self._batcher.replicas() if r.info.replica_id == replica_id), "gone")

    def _state(self, view: ReplicaView) -> str:
        return state_of(view, self._swaps.is_under_way(view.info.replica_id))

    @property
    def queued(self) -> int:
        """Tickets that wait."""
        return self._batcher.queued

    def take(self, gateway: str, outbox: Outbox | Resync, now: float) -> None:
        """Applies what a gateway says. The first that it says is a Resync."""
        if isinstance(outbox, Resync):
            self.forget(gateway)
            self._gateways[gateway] = outbox.metrics
            for ticket, grant in outbox.running:
                self._adopt_quota(gateway, ticket, now)
                self._batcher.adopt(gateway, ticket, grant)
            for ticket in outbox.waiting:
                self._adopt_quota(gateway, ticket, now)
                self._batcher.submit(gateway, ticket, now)
            return
        if self._window is not None:
            self._window.ended(outbox.met, outbox.missed, now)
        for lost in outbox.lost:
            if not self._swaps.is_under_way(lost.replica_id):  # which closes its connections by its own will
                self.leave(lost.replica_id, lost.epoch, now, lost=True)
        for request_id in outbox.started:
            self._batcher.started(request_id, now)
        for released in outbox.released:
            self._quotas.release(released)
            self._batcher.release(released)
        for ticket in outbox.tickets:
            prompt_tokens = ticket.prompt_tokens
            if ticket.mirror:
                self._batcher.submit(gateway, ticket, now)
                continue
            if self._batcher.queued >= self._max_queue and not ticket.resumed:
                self._deny(gateway, Denial(request_id=ticket.request_id, ending=Ending.QUEUE_FULL.name))
            elif refused := self._quotas.admit(gateway, ticket, now):
                self._deny(gateway, refused)
                continue
            else:
                prompt_tokens = self._batcher.submit(gateway, ticket, now)
            if self._window is not None and not ticket.resumed:
                self._window.arrived(prompt_tokens, self._batcher.expected_output(ticket))

    def _adopt_quota(self, gateway: str, ticket: Ticket, now: float) -> None:
        if not ticket.mirror:
            self._quotas.adopt(gateway, ticket, now)

    def decide(self, now: float) -> None:
        """Lets the batcher decide; `collect` gives each gateway what is its."""
        for replica_id, info in list(self._roster.items()):
            if now - self._heard[replica_id] > HEARTBEAT_TIMEOUT_S:
                self.leave(replica_id, info.epoch, now, lost=True)
        decision = self._batcher.decide(now)
        for gateway, grant in decision.grants:
            if quota := self._quotas.quota(grant.request_id, now):
                grant = msgspec.structs.replace(grant, quota=quota)
            self._grants.setdefault(gateway, []).append(grant)
        for gateway, denial in decision.denials:
            self._quotas.give_back(denial.request_id)
            self._deny(gateway, denial)
        self.tally.grants += len(decision.grants)
        if self._window is not None:
            self._window.waits(self._batcher.queued, self._batcher.queued_tokens)

    def _deny(self, gateway: str, denial: Denial) -> None:
        if not denial.mirror:
            self.tally.denials[denial.ending] += 1
        self._denials.setdefault(gateway, []).append(denial)

    def forget(self, gateway: str) -> None:
        """All that this gateway has asked for, and what it was given but has not been told."""
        self._gateways.pop(gateway, None)
        self._batcher.forget_owner(gateway)
        self._quotas.forget_owner(gateway)
        self._grants.pop(gateway, None)
        self._denials.pop(gateway, None)
        self._moves.pop(gateway, None)

    def collect(self, gateway: str, roster_version: int) -> tuple[Inbox | None, int]:
        """What there is to tell this gateway, who was told the roster of that version; and the version it then has."""
        changed = roster_version != self._roster_version
        if not (changed or gateway in self._grants or gateway in self._denials or gateway in self._moves):
            return None, roster_version
        inbox = Inbox(
            grants=tuple(self._grants.pop(gateway, ())),
            denials=tuple(self._denials.pop(gateway, ())),
            move=tuple(self._moves.pop(gateway, ())),
            roster=tuple(r for r in self._roster.values() if not self._swaps.is_cut_off(r.replica_id))
            if changed
            else None,
            assignment=self._assignment if changed else None,
        )
        return inbox, self._roster_version

    def observe_scaling(self, now: float) -> Report | None:
        """The load since the last call; None: nothing scales."""
        if self._window is None:
            return None
        # One that is being swapped is not there for the moment; it does not go, so that another would be wanted.
        there = [view for view in self._batcher.replicas() if not self._is_away_for_a_swap(view.info.replica_id)]
        report = self._window.observe(now, there, self._batcher.placed, bool(self._gateways))
        return report._replace(extra=self._assignment.extra if self._assignment is not None else 0)

    def _is_away_for_a_swap(self, replica_id: str) -> bool:
        return self._swaps.is_under_way(replica_id) and not self._swaps.was_draining(replica_id)

    def scaled(self, decided: Decided) -> None:
        """What was decided of it, before Serve acts on it."""
        self._decided = decided

    def experts(self) -> dict[str, Any]:
        """See `expert_report`."""
        return expert_report((self._roster[replica_id], load) for replica_id, load in self._experts.items())

    def queue_report(self, now: float) -> dict[str, Any]:
        return queue_report(self._batcher.waiting(), now)

    def metrics_addresses(self) -> list[str]:
        """ "host:port" of each gateway's metrics."""
        return sorted(address for address in self._gateways.values() if address)

    def queue(self, now: float) -> Queue:
        """What waits."""
        return Queue.of(self._batcher.waiting(), now)

    def replica_states(self) -> list[str]:
        """As in `status`, one for each replica."""
        return [self._state(replica) for replica in self._batcher.replicas()]

    def vitals(self) -> Vitals:
        return vitals(self._batcher, self.tally, self._swaps, self._assignment)

    def status(self, brief: bool = False) -> dict[str, Any]:
        """What the cluster holds, for `moray status` and the console. `brief`: not which experts are where."""
        return {
            "replicas": [of_replica(view, self._state(view), brief) for view in self._batcher.replicas()],
            "gateways": [{"id": id, "metrics": metrics} for id, metrics in sorted(self._gateways.items())],
            "router": {"queued": self._batcher.queued, "granted": self._batcher.placed},
            "tenants": self._quotas.status(),
            "autoscaling": None if self._window is None else status(self._decided, self._taking()),
        }
