"""What a gateway and the router tell Prometheus, and where it is found."""

from __future__ import annotations

import random
import socket

import httpx
import pytest
from ended import RECORD
from prometheus_client import CollectorRegistry

from cluster.batcher import WaitingView
from cluster.outcomes import Ending
from cluster.request_metrics import NoPort, RequestMetrics, Slo, serve
from cluster.router_metrics import PRIORITIES, Queue, RouterMetrics, Tally
from cluster.targets import targets
from replicas import metrics
from replicas.messages import Tenant, Ticket
from replicas.metrics import CATALOGUE, OTHER, Metric, Teller
from replicas.ray_metrics import RayMetric


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def made(registry: CollectorRegistry, tenants: int = 3) -> RequestMetrics:
    return RequestMetrics("m", Slo(), tenants, registry, lambda: 7)


def values(registry: CollectorRegistry, metric: Metric, suffix: str = "") -> dict[tuple[str, ...], float]:
    """By labels in the catalogue's order; `suffix` is one of a histogram's."""
    return {
        tuple(sample.labels[label] for label in metric.labels): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == metric.name + suffix
    }


def series(registry: CollectorRegistry) -> int:
    return sum(1 for family in registry.collect() for s in family.samples if not s.name.endswith("_created"))


def test_a_request_is_counted_with_its_stages_and_tokens(registry: CollectorRegistry) -> None:
    told = made(registry)
    told.ended(RECORD)
    told.streamed(0.2)
    assert values(registry, metrics.REQUESTS) == {("m", "v1", "DONE"): 1}
    seconds = values(registry, metrics.STAGE_SECONDS, "_sum")
    assert seconds == pytest.approx(
        dict(zip((("m", s) for s in metrics.STAGES), (0.01, 0.49, 0.002, 0.498, 0.4, 0.2), strict=True))
    )
    assert set(values(registry, metrics.STAGE_SECONDS, "_count").values()) == {1}
    assert values(registry, metrics.TTFT_SECONDS, "_sum") == pytest.approx({("m", "v1"): 1.0})
    assert values(registry, metrics.TPOT_SECONDS, "_sum") == pytest.approx({("m", "v1"): 0.1})
    tokens = (metrics.PROMPT_TOKENS, metrics.CACHED_PROMPT_TOKENS, metrics.OUTPUT_TOKENS)
    assert [values(registry, m)["m", "v1"] for m in tokens] == [10, 4, 5]
    assert values(registry, metrics.TENANT_TOKENS) == {("ann", "prompt"): 10, ("ann", "output"): 5}
    assert values(registry, metrics.OPEN_REQUESTS) == {("m",): 7}


def test_a_request_that_never_ran_has_the_stages_it_came_through(registry: CollectorRegistry) -> None:
    shed = RECORD._replace(granted_at=None, submitted_at=None, first_token_at=None, last_token_at=None)
    told = made(registry)
    told.ended(shed._replace(ending="TOO_LATE"))
    counts = values(registry, metrics.STAGE_SECONDS, "_count")
    assert {stage for (_, stage), count in counts.items() if count} == {"prepare"}
    told.refused("UNAUTHENTICATED")
    assert values(registry, metrics.REQUESTS) == {("m", "v1", "TOO_LATE"): 1, ("m", "", "UNAUTHENTICATED"): 1}
    assert values(registry, metrics.TTFT_SECONDS, "_count") == {}
    assert values(registry, metrics.SLO_REQUESTS) == {("m", "true"): 0, ("m", "false"): 1}


def test_a_copy_that_nobody_reads_is_counted_in_its_own_figure_alone(registry: CollectorRegistry) -> None:
    told = made(registry)
    before = {s.name: s.value for f in registry.collect() for s in f.samples if not s.name.endswith("_created")}
    told.ended(RECORD._replace(mirror=True, version="v2"))
    assert values(registry, metrics.MIRRORED_REQUESTS) == {("m", "v2", "DONE"): 1}
    after = {s.name: s.value for f in registry.collect() for s in f.samples if not s.name.endswith("_created")}
    assert after == before | {"moray_mirrored_requests_total": 1}


@pytest.mark.parametrize(
    ("changes", "met"),
    [
        ({}, True),
        ({"ttft_slo_s": 0.9}, False),  # its own limit goes first
        ({"ttft_slo_s": 30.0, "first_token_at": 105.0, "last_token_at": 105.1}, True),
        ({"first_token_at": 102.5, "last_token_at": 102.6}, False),
        ({"last_token_at": 102.2}, False),
        ({"output_tokens": 1, "last_token_at": 101.0}, True),
        ({"ending": "ABORTED"}, None),
        ({"ending": "REJECTED"}, None),
        ({"ending": "RATE_LIMITED"}, None),
        ({"ending": "TOO_LATE"}, False),
        ({"ending": "LOST"}, False),
        ({"ending": "QUARANTINED"}, False),
        ({"ending": "ERROR"}, False),
        ({"ending": "VERSION_GONE"}, False),
        ({"ending": "RESTARTED"}, None),  # the answer that comes of it is held to the SLO
        ({"mirror": True, "ending": "LOST"}, None),
    ],
)
def test_what_is_within_the_slo(changes: dict[str, object], met: bool | None) -> None:
    assert Slo(ttft_s=2.0, tpot_s=0.2).met_by(RECORD._replace(**changes)) is met


def test_a_resume_is_counted_by_its_cause(registry: CollectorRegistry) -> None:
    told = made(registry)
    told.resumed("lost", 0.3)
    told.resumed("moved", 0.1)
    told.resumed("lost", 0.2)
    assert values(registry, metrics.RESUMES) == {("m", "lost"): 2, ("m", "moved"): 1}
    assert values(registry, metrics.RESUME_GAP_SECONDS, "_sum")["m",] == pytest.approx(0.6)


def test_the_catalogue_is_what_a_gateway_tells(registry: CollectorRegistry) -> None:
    told = made(registry)
    told.ended(RECORD)
    told.ended(RECORD._replace(mirror=True))
    told.resumed("lost", 0.3)
    families = {family.name: family for family in registry.collect()}
    for metric in metrics.of(Teller.GATEWAY):
        family = families.pop(metric.name.removesuffix("_total"))
        assert (family.type, family.documentation) == (metric.kind.value, metric.help)
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert labels == set(metric.labels), metric
    assert not families, "told, but not in the catalogue"


def test_ten_thousand_tenants_and_every_ending_stay_few_series(registry: CollectorRegistry) -> None:
    """Of a gateway; 100 tenants are the default."""
    told = made(registry, tenants=100)
    rng = random.Random(5)
    endings = ["DONE", "ABORTED", "ERROR", *(ending.name for ending in Ending)]
    for n in range(10_000):
        told.ended(
            RECORD._replace(
                request_id=f"r{n}",
                tenant=f"tenant-{n}",
                priority=rng.randrange(-1000, 1000),
                replica=f"replica-{n % 257}",
                prompt_tokens=rng.randrange(1, 100_000),
                first_token_at=100.6 + rng.expovariate(0.2),
                last_token_at=1000.0,
                ending=rng.choice(endings),
                version=f"v{n % 2}",
            )
        )
        told.resumed(rng.choice(["lost", "moved"]), rng.random())
        told.refused(rng.choice(endings))
    assert series(registry) <= 100 * 2 + 400
    tenants = values(registry, metrics.TENANT_TOKENS)
    assert len(tenants) == 2 * 101 and tenants[OTHER, "output"] == 5 * 9900


class Told:
    def __init__(self) -> None:
        self.by_name: dict[str, dict[tuple[str, ...], float]] = {}

    def make(self, metric: Metric) -> RayMetric:
        values = self.by_name.setdefault(metric.name, {})

        class OfRay:
            def set(self, value: float, tags: dict[str, str]) -> None:
                values[tuple(tags.values())] = value

            def inc(self, value: float, tags: dict[str, str]) -> None:
                values[tuple(tags.values())] = values.get(tuple(tags.values()), 0.0) + value

        return RayMetric(metric, OfRay())

    def __getitem__(self, metric: Metric) -> dict[tuple[str, ...], float]:
        return {labels: round(value, 6) for labels, value in self.by_name[metric.name].items()}


def waits(since: float, priority: int = 0, prompt: int = 10) -> WaitingView:
    ticket = Ticket(request_id="r", prompt_tokens=prompt, max_tokens=1, priority=priority, tenant=Tenant())
    return WaitingView(ticket, since)


def test_what_the_router_tells() -> None:
    told = Told()
    router = RouterMetrics("m", told.make)
    tally = Tally(grants=3, lost=1)
    tally.denials["TOO_LATE"] += 2
    queue = Queue.of([waits(95.0), waits(97.0, priority=-5, prompt=30), waits(99.0)], 100.0)
    router.tell(queue, ["ready", "draining", "ready"], tally)
    assert told[metrics.QUEUE_REQUESTS] == {("m", "0"): 2, ("m", "-5"): 1}
    assert told[metrics.QUEUE_OLDEST_SECONDS] == {("m",): 5} and told[metrics.QUEUE_PROMPT_TOKENS] == {("m",): 50}
    assert told[metrics.REPLICAS] == {("m", "ready"): 2, ("m", "draining"): 1, ("m", "swapping"): 0}
    assert told[metrics.GRANTS] == {("m",): 3} and told[metrics.REPLICAS_LOST] == {("m",): 1}
    denials = {"NO_REPLICA": 0, "TOO_LATE": 2, "QUEUE_FULL": 0, "RATE_LIMITED": 0}
    assert told[metrics.DENIALS] == {("m", ending): count for ending, count in denials.items()}
    assert told.by_name.keys() == {m.name for m in metrics.of(Teller.ROUTER)}
    router.tell(Queue.of([], 101.0), [], tally)
    assert told[metrics.QUEUE_REQUESTS] == {("m", "0"): 0, ("m", "-5"): 0}
    assert told[metrics.QUEUE_OLDEST_SECONDS] == {("m",): 0} and told[metrics.GRANTS] == {("m",): 3}
    assert told[metrics.REPLICAS] == {("m", "ready"): 0, ("m", "draining"): 0, ("m", "swapping"): 0}


def test_whatever_priorities_clients_send_the_routers_series_are_few() -> None:
    told = Told()
    router = RouterMetrics("m", told.make)
    for priority in range(10_000):
        router.tell(Queue.of([waits(0.0, priority)], 1.0), ["ready"], Tally())
    assert len(told[metrics.QUEUE_REQUESTS]) == PRIORITIES + 1
    assert told[metrics.QUEUE_REQUESTS]["m", OTHER] == 1
    assert sum(len(values) for values in told.by_name.values()) <= PRIORITIES + 20


def test_no_label_of_the_catalogue_can_grow_with_the_load() -> None:
    bounded = {"model", "version", "ending", "stage", "met", "tenant", "kind", "cause", "priority", "state"}
    bounded |= {"gpu", "layer", "shard", "alarm", "severity", "replica", "action", "outcome", "phase"}
    assert {label for metric in CATALOGUE for label in metric.labels} == bounded


def test_metrics_are_served_on_a_port_of_their_own(registry: CollectorRegistry) -> None:
    made(registry).ended(RECORD)
    address = serve(registry, "127.0.0.1", None, 1)
    text = httpx.get(f"http://{address}/metrics").raise_for_status().text
    assert 'moray_requests_total{ending="DONE",model="m",version="v1"} 1.0' in text


def test_gateways_of_one_machine_take_one_port_after_the_other(registry: CollectorRegistry) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(NoPort, match=rf"metrics.port: 127.0.0.1:{port} to {port} are all in use"):
            serve(registry, "127.0.0.1", port, 1)
        for attempt in range(20):  # a neighbour may have the next port
            try:
                address = serve(registry, "127.0.0.1", port, 2 + attempt)
                break
            except NoPort:
                continue
    assert port < int(address.rpartition(":")[2]) <= port + 21
    with pytest.raises(NoPort, match=r"metrics cannot be served on 192\.0\.2\.77:9999"):
        serve(registry, "192.0.2.77", 9999, 1)


def test_targets_are_what_prometheus_wants() -> None:
    nodes = [
        {"Alive": True, "NodeManagerAddress": "10.0.0.2", "MetricsExportPort": 8080},
        {"Alive": True, "NodeManagerAddress": "10.0.0.1", "MetricsExportPort": 8080},
        {"Alive": False, "NodeManagerAddress": "10.0.0.3", "MetricsExportPort": 8080},
        {"Alive": True, "NodeManagerAddress": "10.0.0.4", "MetricsExportPort": 0},
    ]
    assert targets(["10.0.0.9:1", "", "10.0.0.8:2"], nodes) == [
        {"targets": ["10.0.0.8:2", "10.0.0.9:1"], "labels": {"job": "moray-gateway"}},
        {"targets": ["10.0.0.1:8080", "10.0.0.2:8080"], "labels": {"job": "ray"}},
    ]
    assert targets([], []) == []
