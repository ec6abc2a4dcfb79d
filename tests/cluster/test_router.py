"""RouterState: who is known, who has gone silent, and what a router that restarted is told."""

import msgspec
import numpy as np
import pytest

from cluster.batching import ContinuousBatcher, Policy
from cluster.draining import DrainRequest
from cluster.router_state import HEARTBEAT_TIMEOUT_S, RouterState
from cluster.scaling_window import Decided, ScalingWindow
from experts.placement import ShardPlacement
from replicas.assignment import Assignment
from replicas.messages import (
    Capacity,
    ExpertLoad,
    Grant,
    Inbox,
    LoadReport,
    Lost,
    Outbox,
    Released,
    ReplicaInfo,
    Resync,
    Tenant,
    Ticket,
)

WAIT_S = 30.0


def info(replica_id: str = "a", epoch: int = 1, max_num_seqs: int = 2) -> ReplicaInfo:
    capacity = Capacity(
        kv_tokens=1 << 20,
        block_tokens=16,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=1024,
        max_model_len=2048,
    )
    return ReplicaInfo(
        replica_id=replica_id,
        epoch=epoch,
        host="10.0.0.1",
        port=7,
        token="secret",
        model="m",
        engine_pid=42,
        engine_host="process",
        device="cuda",
        capacity=capacity,
        shards=(),
    )


def ticket(request_id: str, resumed: bool = False) -> Ticket:
    return Ticket(request_id=request_id, prompt_tokens=1, max_tokens=1, resumed=resumed)


def grant(request_id: str, replica_id: str = "a", epoch: int = 1) -> Grant:
    return Grant(request_id=request_id, replica_id=replica_id, epoch=epoch)


def report(replica_id: str = "a", epoch: int = 1, running: int = 0) -> LoadReport:
    return LoadReport(replica_id=replica_id, epoch=epoch, running=running, waiting=0, kv_used=0.25)


def outbox(*requests: str, released: tuple[str, ...] = (), lost: tuple[Lost, ...] = ()) -> Outbox:
    ended = tuple(Released(request_id=request_id) for request_id in released)
    return Outbox(tickets=tuple(map(ticket, requests)), released=ended, lost=lost)


def denied(inbox: Inbox) -> list[tuple[str, str]]:
    return [(denial.request_id, denial.ending) for denial in inbox.denials]


class Router:
    """RouterState and a clock that is set by hand."""

    def __init__(
        self, *replicas: ReplicaInfo, gateways: str = "g", max_queue: int = 1000, scales: bool = False
    ) -> None:
        self.now = 1000.0
        window = ScalingWindow(None, self.now) if scales else None
        self.state = RouterState(ContinuousBatcher(Policy(no_replica_wait_s=WAIT_S)), max_queue, window)
        for replica in replicas:
            self.state.join(replica, self.now)
        for gateway in gateways:
            self.exchange(gateway, Resync(gateway=gateway, metrics=f"{gateway}:9"))

    def exchange(self, gateway: str, says: Outbox | Resync) -> Inbox:
        self.state.take(gateway, says, self.now)
        self.state.decide(self.now)
        return self.told(gateway)

    def told(self, gateway: str = "g") -> Inbox:
        """What it is told now, the roster always."""
        inbox, _ = self.state.collect(gateway, -1)
        assert inbox is not None
        return inbox

    def granted(self, gateway: str = "g") -> list[str]:
        self.state.decide(self.now)
        return [given.request_id for given in self.told(gateway).grants]

    def later(self, seconds: float, *alive: str, epoch: int = 1) -> None:
        """Time passes in which these report, replicas and gateways alike."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(self.now + 1.0, end)
            for name in alive:
                self.state.report(report(name, epoch), self.now)
            self.state.decide(self.now)

    @property
    def holds(self) -> tuple[int, int]:
        told = self.state.status()["router"]
        return told["queued"], told["granted"]


def test_grants_go_to_the_gateway_that_asked_once():
    router = Router(info(), gateways="gh")
    assert [g.request_id for g in router.exchange("g", outbox("1")).grants] == ["1"]
    assert router.exchange("h", outbox("2", "3")).grants == (grant("2"),)
    assert router.exchange("g", outbox()).grants == ()
    assert router.exchange("g", outbox(released=("1",))).grants == ()
    assert router.holds == (0, 2)
    assert router.granted("h") == ["3"]


def test_a_restarted_router_is_told_all_and_grants_nothing_twice():
    router = Router(gateways="")
    running = tuple((ticket(r), grant(r)) for r in ("1", "2"))
    told = router.exchange("g", Resync(gateway="g", waiting=(ticket("3"),), running=running))
    assert told.grants == () and router.holds == (1, 2)
    router.state.join(info(), router.now)  # with all that it still runs: it is full
    assert router.granted() == []
    router.exchange("g", outbox(released=("1",)))
    assert router.holds == (0, 2)


def test_resyncing_again_changes_nothing():
    router = Router(info())
    router.exchange("g", outbox("1", "2", "3"))
    said = Resync(gateway="g", waiting=(ticket("3"),), running=((ticket("1"), grant("1")), (ticket("2"), grant("2"))))
    for _ in range(2):
        assert router.exchange("g", said).grants == ()
        assert router.holds == (1, 2)


def test_resyncing_tells_only_what_is_true_now():
    """A grant or a refusal that was not taken yet is void: what it was about is in the resync, or gone."""
    router = Router()
    router.exchange("g", outbox("1", "2"))
    router.later(WAIT_S + 1)
    router.state.join(info(), router.now)
    router.exchange("h", Resync(gateway="h"))
    told = router.exchange("g", Resync(gateway="g", waiting=(ticket("1"),)))
    assert told.denials == () and [g.request_id for g in told.grants] == ["1"]
    assert router.holds == (0, 1)


def test_what_a_gone_gateway_had_is_free_for_others():
    router = Router(info(), gateways="gh")
    router.exchange("g", outbox("1", "2", "3"))
    router.exchange("h", outbox("4"))
    assert router.holds == (2, 2)
    router.state.forget("g")
    router.state.decide(router.now)
    assert router.holds == (0, 1) and router.granted("h") == ["4"]


def test_a_gateway_that_was_forgotten_is_given_no_grants_of_before():
    router = Router(info(), gateways="gh")
    router.state.take("g", outbox("1", "2"), router.now)
    router.state.decide(router.now)  # granted, and not collected
    router.state.forget("g")
    router.exchange("h", outbox("3", "4"))
    assert router.told("g").grants == ()


def test_a_silent_replica_is_taken_out_and_told_to_join_again():
    router = Router(info(), info("b"))
    assert {g.replica_id for g in router.exchange("g", outbox("1", "2")).grants} == {"a", "b"}
    _, version = router.state.collect("g", -1)
    router.later(HEARTBEAT_TIMEOUT_S + 0.5, "a")
    told, _ = router.state.collect("g", version)
    assert told is not None and told.roster is not None and [i.replica_id for i in told.roster] == ["a"]
    assert [g.replica_id for g in router.exchange("g", outbox("3")).grants] == ["a"]
    assert router.exchange("g", outbox("4")).grants == ()
    assert not router.state.report(report("b"), router.now)
    router.state.join(info("b"), router.now)
    assert router.state.report(report("b"), router.now)
    assert router.granted() == ["4"]  # one seat: the other is still taken by what it ran all along
    assert router.exchange("g", outbox("5")).grants == ()


def test_a_report_of_an_earlier_life_is_no_sign_of_life():
    router = Router(info(epoch=2))
    router.later(HEARTBEAT_TIMEOUT_S + 0.5, "a", epoch=1)
    assert router.told().roster == ()


def test_a_late_join_of_an_earlier_life_changes_nothing():
    router = Router(info(epoch=2))
    _, version = router.state.collect("g", -1)
    router.now += HEARTBEAT_TIMEOUT_S - 1
    router.state.join(info(epoch=1), router.now)
    assert router.state.collect("g", version) == (None, version)
    router.later(2.0)
    assert router.told().roster == ()


def test_the_roster_is_told_when_it_has_changed():
    router = Router()
    _, version = router.state.collect("g", -1)

    def changes(change: object) -> tuple[int, ...]:
        nonlocal version
        told, newer = router.state.collect("g", version)
        assert (told is None) == (newer == version)
        version = newer
        return tuple(i.epoch for i in told.roster or ()) if told else ()

    assert changes(router.state.join(info(), router.now)) == (1,)
    assert changes(router.state.join(info(), router.now)) == ()
    assert changes(router.state.report(report(running=1), router.now)) == ()
    assert changes(router.state.join(info(epoch=2), router.now)) == (2,)
    assert changes(router.state.leave("a", 1, router.now)) == ()
    router.state.leave("a", 2, router.now)
    told, newer = router.state.collect("g", version)
    assert told is not None and told.roster == () and newer > version


def test_a_gateways_word_of_a_loss_takes_the_replica_out_and_moves_its_requests():
    router = Router(info(), gateways="gh")
    router.exchange("g", outbox("1"))
    router.exchange("h", outbox("2"))
    router.state.join(info("b"), router.now)
    told = router.exchange(
        "g",
        Outbox(
            tickets=(ticket("1", resumed=True),),
            released=(Released(request_id="1"),),
            lost=(Lost(replica_id="a", epoch=1),),
        ),
    )
    assert told.grants == (grant("1", "b"),) and told.roster == (info("b"),)
    assert router.exchange("h", outbox(lost=(Lost(replica_id="a", epoch=1),))).roster == (info("b"),)
    assert router.holds == (0, 2)
    router.exchange("h", outbox(released=("2",)))
    router.exchange("g", outbox(released=("1",)))
    assert router.holds == (0, 0)


def test_a_grant_for_what_was_released_meanwhile_holds_nothing():
    router = Router(info(max_num_seqs=1), gateways="gh")
    router.state.take("g", outbox("1"), router.now)
    router.state.decide(router.now)
    router.state.take("g", outbox(released=("1",)), router.now)
    assert router.holds == (0, 0)
    assert router.exchange("h", outbox("2")).grants == (grant("2"),)
    router.told("g")  # tells of the void grant; the gateway ignores it
    assert router.holds == (0, 1)


def test_without_replicas_the_wait_ends():
    router = Router()
    router.exchange("g", outbox("1"))
    router.later(WAIT_S - 1)
    assert router.told().denials == ()
    router.later(2)
    assert denied(router.told()) == [("1", "NO_REPLICA")] and denied(router.told()) == []
    assert router.holds == (0, 0)


def test_a_full_queue_refuses_what_is_fresh():
    router = Router(info(max_num_seqs=1), gateways="gh", max_queue=2)
    assert router.exchange("g", outbox("1")).grants == (grant("1"),)
    assert denied(router.exchange("g", outbox("2", "3", "4"))) == [("4", "QUEUE_FULL")]
    assert denied(router.exchange("h", outbox("5"))) == [("5", "QUEUE_FULL")]
    resumed = Outbox(tickets=(ticket("6", resumed=True),))
    assert denied(router.exchange("h", resumed)) == [] and router.holds == (3, 1)
    assert denied(router.exchange("g", outbox(released=("2", "3")))) == []
    assert denied(router.exchange("g", outbox("7"))) == [] and router.holds == (2, 1)


def test_status_tells_all_but_secrets():
    router = Router(info())
    router.state.report(report(running=1), router.now)
    router.exchange("g", outbox("1", "2", "3"))
    told = router.state.status()
    assert b"secret" not in msgspec.json.encode(told)
    (replica,) = told["replicas"]
    assert (replica["id"], replica["granted"], replica["running"], replica["kv_used_fraction"]) == ("a", 2, 1, 0.25)
    assert told["gateways"] == [{"id": "g", "metrics": "g:9"}] and told["router"] == {"queued": 1, "granted": 2}


@pytest.mark.parametrize("lives", [1, 50])
def test_replicas_that_are_gone_leave_nothing_behind(lives):
    router = Router()
    for n in range(lives):
        router.state.join(info(f"r{n}"), router.now)
        router.state.report(report(f"r{n}"), router.now)
        router.state.leave(f"r{n}", 1, router.now)
        router.state.report(report(f"r{n}"), router.now)
    assert router.state._heard == router.state._roster == {}


def test_a_brief_status_tells_all_but_which_experts_are_where() -> None:
    state = Router(sharded("a")).state
    whole, brief = state.status(), state.status(brief=True)
    [of_whole], [of_brief] = (told["replicas"][0].pop("shards")[:1] for told in (whole, brief))
    assert (of_whole.pop("experts_by_layer"), of_brief.pop("experts_by_layer")) == ([[0, 1]], None)
    assert (whole, of_whole) == (brief, of_brief)


# -- experts ----------------------------------------------------------------------------------------------------------


def shard(rank: int, *ids: int) -> ShardPlacement:
    layer = {"model.layers.0.mlp.experts": ids}
    return ShardPlacement(tp_rank=rank, ep_rank=rank, ep_size=2, pid=7, experts=layer, expert_bytes=1)


def sharded(replica_id: str) -> ReplicaInfo:
    return msgspec.structs.replace(info(replica_id), shards=(shard(0, 0, 1), shard(1, 2, 3)))


def told(replica_id: str, *tokens: int, epoch: int = 1) -> LoadReport:
    load = ExpertLoad(seconds=5.0, layers=1, experts=len(tokens), tokens=np.array([tokens], "<i8").tobytes())
    return msgspec.structs.replace(report(replica_id, epoch), experts=load)


def test_experts_loads_are_summed_over_replicas_and_split_by_shard() -> None:
    router = Router(sharded("a"), sharded("b"))
    assert router.state.experts() == {
        "layers": [],
        "tokens": [],
        "shard_tokens": [],
        "seconds": 0.0,
        "replicas": [],
    }
    router.state.report(told("a", 6, 0, 1, 1), router.now)
    router.state.report(told("b", 1, 1, 1, 1), router.now)
    router.state.report(report("b"), router.now)  # without news: what it told last stays
    found = router.state.experts()
    assert (found["layers"], found["tokens"]) == (["model.layers.0.mlp.experts"], [[7, 1, 2, 2]])
    assert found["shard_tokens"] == [[8.0, 4.0]]
    assert found["replicas"][0] == {
        "id": "a",
        "seconds": 5.0,
        "tokens": 8,
        "shards": [{"rank": 0, "tokens": 6.0}, {"rank": 1, "tokens": 2.0}],
        "shard_max_over_mean": [1.5],
    }


def test_shards_of_unlike_layouts_are_not_summed() -> None:
    router = Router(sharded("a"), msgspec.structs.replace(info("b"), shards=(shard(0, 0, 1, 2, 3),)))
    router.state.report(told("a", 6, 0, 1, 1), router.now)
    assert router.state.experts()["shard_tokens"] == [[6.0, 2.0]]
    router.state.report(told("b", 1, 1, 1, 1), router.now)
    found = router.state.experts()
    assert (found["tokens"], found["shard_tokens"]) == ([[7, 1, 2, 2]], [])


def test_a_replica_that_left_has_no_experts_and_a_stranger_is_not_believed() -> None:
    router = Router(sharded("a"))
    router.state.report(told("a", 1, 1, 1, 1), router.now)
    router.state.report(told("a", 9, 9, 9, 9, epoch=0), router.now)
    assert router.state.experts()["tokens"] == [[1, 1, 1, 1]]
    router.state.leave("a", 1, router.now)
    assert router.state.experts()["replicas"] == []


def test_where_gateways_serve_their_metrics_is_known_while_they_are_there():
    router = Router(gateways="gh")
    assert router.state.metrics_addresses() == ["g:9", "h:9"]
    router.state.forget("h")
    router.exchange("g", Resync(gateway="g"))
    assert router.state.metrics_addresses() == []


def test_what_was_decided_is_tallied():
    router = Router(info("a"), info("b"), max_queue=1)
    for request_id in "12345":
        router.exchange("g", outbox(request_id))
    assert router.state.queue(router.now + 2.0) == ({0: 1}, 2.0, 1)
    router.exchange("g", outbox("6"))
    tally = router.state.tally
    assert (tally.grants, dict(tally.denials), tally.lost) == (4, {"QUEUE_FULL": 1}, 0)
    lost = Lost(replica_id="a", epoch=1)
    for _ in range(2):  # two gateways tell of it
        router.exchange("g", outbox(lost=(lost,)))
    assert (tally.lost, router.state.replica_states()) == (1, ["ready"])
    router.later(HEARTBEAT_TIMEOUT_S + 1)  # b falls silent
    assert tally.lost == 2
    router.state.join(info("a", 2), router.now)
    router.state.leave("a", 2, router.now)  # in order
    assert tally.lost == 2 and router.state.replica_states() == []
    router.later(WAIT_S + 1)
    assert tally.denials == {"QUEUE_FULL": 1, "NO_REPLICA": 1}


def scaled_router(target: int | None, replicas: str = "ab", **changes: object) -> Router:
    """Two requests on each replica; a decision for so many, None: nobody has decided yet."""
    router = Router(*(msgspec.structs.replace(info(name), **changes) for name in replicas), scales=True)
    inbox = router.exchange("g", outbox(*(f"{i}" for i in range(2 * len(replicas)))))
    assert len(inbox.grants) == 2 * len(replicas)
    if target is not None:
        router.state.scaled(Decided(target, "so it is."))
    return router


def stopped(router: Router, replica_id: str) -> set[str]:
    """What is moved when that replica stops; it takes nothing more in any case."""
    on_it = {request_id for _, request_id in router.state._batcher.running_on(replica_id)}
    router.state.stop(replica_id, 1, router.now)
    told = router.told()
    assert replica_id not in {known.replica_id for known in told.roster or ()}
    assert set(told.move) in (set(), on_it)
    return set(told.move)


def test_scaling_in_moves_what_the_stopping_replica_runs():
    assert len(stopped(scaled_router(target=1), "b")) == 2
    router = scaled_router(target=2, replicas="abcd")
    assert len(stopped(router, "d")) == len(stopped(router, "c")) == 2


def test_what_stops_for_another_reason_lets_its_streams_end():
    assert not stopped(scaled_router(target=None), "b")  # not known: no
    router = scaled_router(target=2)  # the session ends, or it is replaced
    assert not stopped(router, "b") and not stopped(router, "a")
    router = scaled_router(target=1)
    assert stopped(router, "b") and not stopped(router, "a")  # to the last one nothing is left to move to


def test_streams_move_to_replicas_of_their_own_version_only():
    router = Router(info("a"), msgspec.structs.replace(info("b"), version="new"), scales=True)
    router.exchange("g", outbox("1", "2", "3", "4"))
    router.state.scaled(Decided(1, "so it is."))
    assert not stopped(router, "b")


def test_a_replica_that_is_drained_is_none_to_move_to():
    router = scaled_router(target=1)
    router.state.drain(DrainRequest(replica="a"), router.now)
    assert not stopped(router, "b")


def test_the_autoscaling_sees_all_that_arrives_but_what_resumes_or_has_no_quota():
    router = Router(info(), max_queue=1, scales=True)
    few = Tenant(name="few", requests_per_min=1)
    tickets = [
        Ticket(request_id="runs", prompt_tokens=100, max_tokens=10),
        Ticket(request_id="waits", prompt_tokens=200, max_tokens=10),
        Ticket(request_id="again", prompt_tokens=4000, max_tokens=10, resumed=True),
        Ticket(request_id="full", prompt_tokens=300, max_tokens=10),
    ]
    for each in tickets:
        router.exchange("g", Outbox(tickets=(each,)))
    router.now += 10.0
    report_ = router.state.observe_scaling(router.now)
    assert report_ is not None and report_.seen.prompt_tokens_per_s == 60.0
    assert report_.seen.output_tokens_per_s == 3.0 and report_.seen.running == 2
    router = Router(info(), scales=True)
    for name in "12":
        ask = Ticket(request_id=name, prompt_tokens=50, max_tokens=10, tenant=few)
        router.exchange("g", Outbox(tickets=(ask,)))
    router.now += 10.0
    report_ = router.state.observe_scaling(router.now)
    assert report_ is not None and report_.seen.prompt_tokens_per_s == 5.0


def test_the_autoscaling_sees_the_least_queue_and_what_was_attained():
    router = Router(info(max_num_seqs=1), scales=True)
    router.exchange("g", outbox("1", "2", "3"))
    assert router.state.observe_scaling(router.now + 1.0).seen.queued == 0  # nobody waited before
    router.later(1.0, "a")
    seen = router.state.observe_scaling(router.now).seen
    assert (seen.queued, seen.queued_tokens, seen.attainment) == (2, 2, None)
    router.exchange("g", Outbox(released=(Released(request_id="1"), Released(request_id="2")), met=15, missed=5))
    seen = router.state.observe_scaling(router.now + 2.0).seen
    assert (seen.queued, seen.attainment) == (0, 0.75)


def test_without_a_gateway_the_autoscaling_is_not_told_that_nothing_arrives():
    router = Router(info(), gateways="", scales=True)
    assert router.state.observe_scaling(router.now + 5.0).seen.prompt_tokens_per_s is None


def test_status_tells_the_last_decision_and_why():
    assert Router(info()).state.status()["autoscaling"] is None
    router = Router(info("a"), scales=True)
    assert router.state.status()["autoscaling"]["target"] is None
    router.state.scaled(Decided(3, "Scale out from 1 to 3: so it is."))
    assert router.state.status()["autoscaling"] == {
        "target": 3,
        "reason": "Scale out from 1 to 3: so it is.",
        "ready": 1,
        "loading": 2,
    }


def test_vitals_are_what_a_watcher_needs() -> None:
    state = RouterState(ContinuousBatcher(Policy(WAIT_S)), max_queue=9)
    state.join(msgspec.structs.replace(info("a"), actor_name="actor", version="v2"), 0.0)
    state.join(info("b"), 0.0)
    state.take("g", Resync(gateway="g"), 0.0)
    state.take("g", Outbox(tickets=tuple(ticket(f"r{n}") for n in range(5))), 0.0)
    state.decide(0.0)
    state.take("g", Outbox(lost=(Lost(replica_id="b", epoch=1), Lost(replica_id="b", epoch=1))), 0.1)
    state.leave("c", 1, 0.2)
    told = state.vitals()
    assert told.granted + told.waiting == 5 and told.granted > 0 and told.lost == 1
    [replica] = told.replicas
    assert (replica.replica_id, replica.epoch, replica.version, replica.actor_name) == ("a", 1, "v2", "actor")
    assert replica.granted > 0 and not replica.draining


def test_the_autoscaling_is_told_how_many_replicas_a_rollout_wants_on_top():
    router = Router(info(), scales=True)
    assert router.state.observe_scaling(router.now + 1.0).extra == 0
    router.state.assign(Assignment(revision=1, stable="v1", new_replica="v2", extra=2))
    assert router.state.observe_scaling(router.now + 2.0).extra == 2
