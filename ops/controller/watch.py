"""What many gateways and the router tell, made into what the detectors want to be told. Pure: times are passed in.

A replica's tokens are the sum of what its gateways saw; they report at their own times and come and go, so each one's
counter is taken as differences. A gateway that is late or gone says nothing of what a replica gives: its requests
there are left out, or a gateway that hangs would look like a replica that does.
"""

from collections.abc import Iterator, Mapping

import msgspec

from cluster.vitals import Vitals
from ops.anomaly.observations import ModelReport, Observation, ReplicaGone, ReplicaHung, ReplicaReport, Request
from ops.controller.history import History
from ops.controller.reports import Batch

FRESH_S = 3.0  # for so long a gateway's last batch tells how things are
GATEWAY_GONE_S = 30.0
REPLICA_GONE_S = 60.0  # out of the roster, nothing running, and Ray does not know either


class Counted(msgspec.Struct):
    """One gateway's counters of one replica, as it told them last."""

    epoch: int
    given: int
    tokens: int
    running: int


class SeenGateway(msgspec.Struct):
    at_s: float  # its last batch
    late: bool
    replicas: dict[str, Counted] = {}
    dropped: int = 0
    heard: int = 0  # requests that it has told of


class Known(msgspec.Struct):
    """A replica that was in the roster, or that a gateway told of, and is not gone."""

    model: str  # name and version
    epoch: int
    actor_name: str = ""
    in_roster: bool = False
    draining: bool = False
    swapping: bool = False  # it is being given another version
    given: int = 0  # tokens and signs of life
    running: int = 0  # as its gateways see it; those that are fresh
    last_s: float = 0.0  # when it was in the roster, or had something running


class WatchState(msgspec.Struct):
    """`known` has to survive a restart: of a replica that goes meanwhile the alarms must end all the same."""

    known: dict[str, Known] = {}
    gateways: dict[str, SeenGateway] = {}
    gone: dict[str, float] = {}  # replicas whose process has ended, and when: gateways may tell of them a while yet


def named(model: str, version: str) -> str:
    """Another version has another baseline, and other alarms."""
    return f"{model}@{version}" if version else model


class Watch:
    def __init__(self, model: str, known: dict[str, Known] | None = None) -> None:
        self.model, self.history = model, History()
        self.state = WatchState(known or {})

    # -- what comes ---------------------------------------------------------------------------------------------------

    def unheard(self, batch: Batch) -> Batch:
        """Without requests that were told before: the gateway did not get to know that they were taken."""
        known = self.state.gateways.get(batch.gateway)
        again = min(max(known.heard - batch.first, 0), len(batch.requests)) if known is not None else 0
        return msgspec.structs.replace(batch, requests=batch.requests[again:], first=batch.first + again)

    def take(self, now_s: float, batch: Batch) -> Iterator[Observation]:
        """A gateway's batch, of what was `unheard`."""
        is_new = batch.gateway not in self.state.gateways
        gateway = self.state.gateways.setdefault(batch.gateway, SeenGateway(now_s, True))
        gateway.at_s, gateway.late, gateway.dropped = now_s, batch.late, batch.dropped
        gateway.heard = max(gateway.heard, batch.first + len(batch.requests))
        before, gateway.replicas = gateway.replicas, {}
        for seen in batch.replicas:
            told = Counted(seen.epoch, seen.tokens + seen.signs, seen.tokens, seen.running)
            gateway.replicas[seen.replica_id] = told
            is_gone = seen.replica_id in self.state.gone
            known = None if is_gone else self._known(now_s, seen.replica_id, seen.epoch, seen.version)
            if is_new:
                continue  # when its counters grew is not known: it may have told them to the controller before us
            last = before.get(seen.replica_id)
            if last is None or last.epoch != told.epoch or told.given < last.given:
                last = Counted(told.epoch, 0, 0, 0)  # it has connected since
            if known is not None:
                known.given += told.given - last.given
            if tokens := told.tokens - last.tokens:
                self.history.given(now_s, tokens)
        for request in batch.requests:
            if request.mirror:
                continue  # nobody waited for it
            at_s, model = now_s - request.age_s, named(self.model, request.version)
            self.history.ended(at_s, request)
            yield Request(
                at_s=at_s,
                model=model,
                replica=request.replica,
                prompt_tokens=request.prompt_tokens,
                ttft_s=request.ttft_s,
                tpot_s=request.tpot_s,
                failed=request.failed,
                shed=request.shed,
            )
        for hung in batch.hung:
            if hung.replica_id in self.state.gone:
                continue  # its alarm has ended with it, and would begin anew
            known = self._known(now_s, hung.replica_id, hung.epoch, hung.version)
            if hung.epoch < known.epoch:
                continue  # it has come back since, with other weights
            yield ReplicaHung(now_s, known.model, hung.replica_id, hung.running)

    def look(self, now_s: float, vitals: Vitals | None, alive: Mapping[str, bool]) -> Iterator[Observation]:
        """Once a second. `vitals` None: the router is away. `alive`: of `doubtful`, whether Ray has its process."""
        for name in [n for n, gateway in self.state.gateways.items() if now_s - gateway.at_s > GATEWAY_GONE_S]:
            del self.state.gateways[name]
        for replica_id in [r for r, at_s in self.state.gone.items() if now_s - at_s > REPLICA_GONE_S]:
            del self.state.gone[replica_id]
        fresh = [g for g in self.state.gateways.values() if now_s - g.at_s <= FRESH_S and not g.late]
        if vitals is not None:
            yield from self._take_roster(now_s, vitals)
        for replica_id, known in self.state.known.items():
            told = [] if known.swapping else [gateway.replicas.get(replica_id) for gateway in fresh]
            known.running = sum(one.running for one in told if one is not None and one.epoch == known.epoch)
            if known.in_roster or known.running:
                known.last_s = now_s
        if vitals is not None:
            yield ModelReport(now_s, self.model, vitals.waiting, vitals.granted, vitals.lost)
            self.history.levels(now_s, vitals.waiting, sum(replica.granted for replica in vitals.replicas))
        for replica_id, known in list(self.state.known.items()):
            lives = True if known.in_roster else alive.get(replica_id)
            if lives is False or (now_s - known.last_s > REPLICA_GONE_S and not lives):
                del self.state.known[replica_id]
                if lives is False:
                    self.state.gone[replica_id] = now_s
                yield ReplicaGone(now_s, known.model, replica_id)
            else:
                yield ReplicaReport(now_s, known.model, replica_id, lives, known.running, known.given)

    def _known(self, now_s: float, replica_id: str, epoch: int, version: str) -> Known:
        known = self.state.known.setdefault(replica_id, Known(named(self.model, version), epoch, last_s=now_s))
        known.epoch = max(known.epoch, epoch)
        return known

    def _take_roster(self, now_s: float, vitals: Vitals) -> Iterator[ReplicaGone]:
        """One that has another version by now is gone as what it was: the alarms of that end."""
        for known in self.state.known.values():
            known.in_roster = False
        for replica in vitals.replicas:
            known = self._known(now_s, replica.replica_id, replica.epoch, replica.version)
            if known.model != (model := named(self.model, replica.version)):
                yield ReplicaGone(now_s, known.model, replica.replica_id)
                known.model = model
            known.swapping = replica.swapping
            known.actor_name, known.draining, known.in_roster = replica.actor_name, replica.draining, True

    # -- what there is ------------------------------------------------------------------------------------------------

    def doubtful(self, vitals: Vitals | None) -> dict[str, str]:
        """Actor names, by replica, of those that the roster lacks: Ray is to be asked whether they live."""
        there = {replica.replica_id for replica in vitals.replicas} if vitals is not None else set()
        return {
            replica_id: known.actor_name
            for replica_id, known in self.state.known.items()
            if known.actor_name and replica_id not in there and not (vitals is None and known.in_roster)
        }

    def lag_s(self, now_s: float) -> float | None:
        """Age of the newest batch. None: no gateway has told anything."""
        return min((now_s - gateway.at_s for gateway in self.state.gateways.values()), default=None)

    @property
    def dropped(self) -> int:
        return sum(gateway.dropped for gateway in self.state.gateways.values())
