"""The catalogue of metrics, and what a replica tells of it."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace

import pytest

from replicas import metrics
from replicas.core import CoreLoad
from replicas.gpus import Gpu, Gpus
from replicas.messages import Capacity, ReplicaInfo, Work
from replicas.metrics import CATALOGUE, OTHER, Bounded, Kind, Metric, Teller
from replicas.ray_metrics import RayMetric
from replicas.replica_metrics import TELL_S, ReplicaMetrics


class Told:
    """Stands where Ray's Gauge and Counter are: value by labels."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, ...], float] = {}

    def set(self, value: float, tags: dict[str, str]) -> None:
        self.values[tuple(tags.values())] = value

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert value > 0, "Ray refuses it"
        self.values[tuple(tags.values())] = self.values.get(tuple(tags.values()), 0.0) + value


class Port:
    """All that was told, by name."""

    def __init__(self) -> None:
        self.told: dict[str, Told] = {}

    def make(self, metric: Metric) -> RayMetric:
        assert metric.name not in self.told, "made twice"
        return RayMetric(metric, self.told.setdefault(metric.name, Told()))

    def __getitem__(self, metric: Metric) -> dict[tuple[str, ...], float]:
        return self.told[metric.name].values


@pytest.fixture
def port() -> Port:
    return Port()


def test_names_follow_prometheus_rules() -> None:
    assert len({m.name for m in CATALOGUE}) == len(CATALOGUE) > 30
    for metric in CATALOGUE:
        assert re.fullmatch(r"moray(_[a-z]+)+", metric.name), metric
        assert (metric.kind is Kind.COUNTER) == metric.name.endswith("_total"), metric
        assert (metric.kind is Kind.HISTOGRAM) == bool(metric.buckets), metric
        assert list(metric.buckets) == sorted(set(metric.buckets))
        assert metric.help.endswith(".") and metric.unit
        assert len(set(metric.labels)) == len(metric.labels) and "le" not in metric.labels
        if metric.unit == "seconds":
            assert metric.name.endswith("_seconds")
        if metric.unit == "bytes":
            assert metric.name.endswith("_bytes")


def test_rays_names_have_rays_prefix() -> None:
    assert metrics.GRANTS.scraped == "ray_moray_grants_total"
    assert metrics.REQUESTS.scraped == "moray_requests_total"
    tellers = {teller: [m.name for m in metrics.of(teller)] for teller in Teller}
    assert all(tellers.values()) and sum(map(len, tellers.values())) == len(CATALOGUE)


def test_a_label_is_bounded() -> None:
    label = Bounded(2)
    assert [label(name) for name in ("a", "b", "c", "a", "d", "b")] == ["a", "b", OTHER, "a", OTHER, "b"]
    assert Bounded(0)("a") == OTHER


def test_a_counter_is_there_before_it_counts_and_then_counts_exactly(port: Port) -> None:
    counter = port.make(metrics.REPLICAS_LOST)
    counter.tell(0, "m")
    assert ("m",) in port[metrics.REPLICAS_LOST] and port[metrics.REPLICAS_LOST]["m",] == pytest.approx(0)
    for total in (0, 1, 1, 3):
        counter.tell(total, "m")
        assert port[metrics.REPLICAS_LOST]["m",] == pytest.approx(total)
    assert port[metrics.REPLICAS_LOST]["m",] == 3.0


INFO = ReplicaInfo(
    replica_id="r",
    epoch=5_000_000_000,
    host="h",
    port=1,
    token="t",
    model="m",
    version="v2",
    engine_pid=1,
    engine_host="process",
    device="cpu",
    capacity=Capacity(kv_tokens=1000, block_tokens=10, max_num_seqs=8, max_num_batched_tokens=64, max_model_len=100),
    shards=(),
)


def test_what_a_replica_tells(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("replicas.replica_metrics.time.monotonic", lambda: now[0])
    gpus = SimpleNamespace(read=lambda: [Gpu("3", 0.5, 7, 9)])
    told = ReplicaMetrics(INFO, gpus, port.make)  # type: ignore[arg-type]
    told.tell(CoreLoad(2, 1, 0.25, Work(steps=5, prefix_query_tokens=40, prefix_hit_tokens=30)))
    now[0] += TELL_S / 2
    told.tell(CoreLoad(8, 0, 1.0, Work(steps=6)))  # too soon
    expected = {
        metrics.RUNNING_REQUESTS: 2,
        metrics.ENGINE_WAITING_REQUESTS: 1,
        metrics.BATCH_FILL: 0.25,
        metrics.KV_USED: 0.25,
        metrics.KV_HEADROOM: 750,
        metrics.ENGINE_STEPS: 5,
        metrics.PREFIX_QUERY_TOKENS: 40,
        metrics.PREFIX_HIT_TOKENS: 30,
        metrics.REPLICA_START: 5.0,
    }
    assert {m: port[m]["m",] for m in expected} == expected
    assert port[metrics.MODEL_VERSION] == {("m", "v2"): 1}
    gpu = [port[m]["3",] for m in (metrics.GPU_UTILIZATION, metrics.GPU_MEMORY_USED, metrics.GPU_MEMORY_TOTAL)]
    assert gpu == [0.5, 7, 9]
    now[0] += TELL_S
    told.tell(CoreLoad(0, 0, 0.0, Work(steps=9)))
    assert (port[metrics.ENGINE_STEPS]["m",], port[metrics.RUNNING_REQUESTS]["m",]) == (9, 0)
    of_experts = {metrics.EXPERT_IMBALANCE.name, metrics.SHARD_IMBALANCE.name, metrics.SHARD_SHARE.name}
    assert port.told.keys() | of_experts == {m.name for m in metrics.of(Teller.REPLICA)}


class Nvml:
    """NVML's part that is used, as nvidia-ml-py has it: three GPUs, of which the last one falls off the bus."""

    class NVMLError(Exception):
        pass

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return 3

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}f00d"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        if handle == 2:
            raise self.NVMLError("GPU is lost")
        return SimpleNamespace(used=10 + handle, total=80)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(gpu=25)


@pytest.mark.parametrize(
    ("visible", "seen"), [(None, ["0", "1"]), ("1,2", ["1"]), ("GPU-0f", ["0"]), ("", []), ("2,0", ["0"])]
)
def test_the_gpus_of_a_replica_are_those_that_it_may_use(
    visible: str | None, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())  # type: ignore[arg-type]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    gpus = Gpus(True)
    for _ in range(2):
        assert gpus.read() == [Gpu(name, 0.25, 10 + int(name), 80) for name in seen]


def test_without_nvml_there_are_no_gpus_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as if it were not installed
    assert Gpus(True).read() == [] and Gpus(False).read() == []

    class NoDriver(Nvml):
        def nvmlInit(self) -> None:
            raise self.NVMLError("Driver Not Loaded")

    monkeypatch.setitem(sys.modules, "pynvml", NoDriver())  # type: ignore[arg-type]
    assert Gpus(True).read() == []
