"""Versions rolled on the real stack: in place under load, back from bad ones, through kills of the controller.

One session for all of it; each test begins with the version that the one before has left.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil
import pytest

from experts.tiny_r1 import store_path
from experts.versions import find
from ops.bench.bad_versions import Fault, make
from ops.bench.rollout_answers import Verdict, tally, way_back
from ops.bench.rollout_load import Load, asks
from ops.bench.rollout_watch import Ended, Sight, ended, extra_replicas, is_core, settled, sight
from ops.models.add import add
from ops.soak.answers import Answer
from ops.soak.catalogue import Ask

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

REPLICAS = 2
FOUND = {Fault.SWAPPED_EXPERTS: "golden prompts", Fault.CRASH_AT_LOAD: "model.norm.weight"}  # by its cause
KILLS = 7  # of the controller, in each of three rollouts
UNASKED = "endless"  # a bad version without golden prompts: only its traffic tells
SETTINGS = {
    "replicas.count": str(REPLICAS),
    "experts.expert_parallel": "1",
    "model.version": "v1",
    "model.dtype": "float32",  # as the golden prompts were judged
    "router.ttft_slo_s": "60",
    "rollout.steps": "[0.3]",
    "rollout.min_samples": "20",
    "rollout.step_s": "3",
    "rollout.settle_s": "0.5",
    "rollout.deadline_s": "150",
    # Wide: a few requests have to say yes, on two CPUs that all processes share.
    "rollout.ttft_ratio": "4",
    "rollout.tpot_ratio": "4",
    "rollout.length_ratio": "1.8",
    "rollout.unfinished_ratio": "5",
    "rollout.errors": "0.2",
    "rollout.finish_s": "30",
}


class Cluster:
    """The session, asked over HTTP."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.url = session.url
        self.http = httpx.Client(base_url=session.url, timeout=60)
        self.sights: list[Sight] = []
        self.references: dict[str, dict[str, Answer]] = {}  # by version

    def report(self) -> dict[str, Any]:
        """Of the controller; asked again while it is away."""
        told: dict[str, Any] = self._get("/moray/rollouts")
        return told

    def look(self) -> Sight:
        self.sights.append(
            sight(
                time.monotonic(),
                self.report(),
                self._get("/moray/status"),
                sum(is_core(process.pid) for process in self.session.processes()),
            )
        )
        return self.sights[-1]

    def post(self, path: str, body: dict[str, Any], expected: int = 200) -> dict[str, Any]:
        reply = self.http.post(f"/moray/rollouts{path}", json=body)
        assert reply.status_code == expected, f"{reply.status_code}: {reply.text}"
        answer: dict[str, Any] = reply.json()
        return answer

    def start(self, version: str, **spec: Any) -> str:
        """The new rollout's id."""
        return str(self.post("", {"version": version, **spec})["current"]["id"])

    def wait(self, rollout: str, within_s: float = 180) -> Ended:
        """Until it has ended and one version is served again."""
        return self._until(lambda: self._over(rollout), within_s, f"rollout {rollout} to end")

    def wait_for_phase(self, phase: str, within_s: float = 60) -> None:
        self._until(lambda: (self.report()["current"] or {}).get("phase") == phase, within_s, phase)

    def _over(self, rollout: str) -> Ended | None:
        seen, how = self.look(), ended(self.report(), rollout)
        return how if how and settled(seen, self.stable(), REPLICAS) else None

    def _until(self, probe: Callable[[], Any], within_s: float, what: str) -> Any:
        deadline = time.monotonic() + within_s
        while not (found := probe()):
            assert time.monotonic() < deadline, f"not within {within_s} s: {what}; {self.report()}; {self.sights[-1:]}"
            time.sleep(0.2)
        return found

    def told(self) -> list[str]:
        """The last of what was decided and asked for, for whoever wonders at an end."""
        entries = self._get("/moray/rollouts/audit?count=30")["entries"]
        return [f"{entry['what']}: {entry['detail']}" for entry in entries]

    def stable(self) -> str:
        return str(self.report()["stable"])

    def versions(self) -> set[str]:
        return {replica["version"] for replica in self._get("/moray/status")["replicas"]}

    def ask(self, headers: dict[str, str] | None = None) -> httpx.Response:
        chat = [{"role": "user", "content": "What is 12+34?"}]
        body = {"model": "tiny-r1", "messages": chat, "max_tokens": 200, "temperature": 0}
        return self.http.post("/v1/chat/completions", json=body, headers=headers or {})

    def controller(self) -> psutil.Process | None:
        """The process of the controller actor."""
        for process in self.session.processes():
            try:
                found = psutil.Process(process.pid)
                if (found.cmdline() or [""])[0].startswith("ray::Controller"):
                    return found
            except psutil.Error:
                continue
        return None

    def _get(self, path: str) -> Any:
        deadline = time.monotonic() + 60
        while True:
            reply = self.http.get(path)
            if reply.status_code == 200:
                return reply.json()
            assert reply.status_code == 503 and time.monotonic() < deadline, f"{path}: {reply.text}"
            time.sleep(0.2)


@pytest.fixture(scope="module")
def cluster(new_session: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    store = tmp_path_factory.mktemp("tiny-r1", numbered=False)  # which names the model
    for name in ("v1", "v2"):
        shutil.copytree(store_path() / name, store / name)
    manifest = find(store, "v2").manifest
    assert manifest is not None and manifest.golden, "else nothing tells a bad version before its traffic"
    scratch = tmp_path_factory.mktemp("bad")
    for fault in (Fault.SWAPPED_EXPERTS, Fault.CRASH_AT_LOAD, Fault.ENDLESS):
        make(fault, store / "v2", scratch / fault)
        add(scratch / fault, store, fault, parent="v2", golden=() if fault == UNASKED else manifest.golden)
    with new_session(SETTINGS | {"model.store": str(store)}) as running:
        cluster = Cluster(running)
        cluster._until(lambda: settled(cluster.look(), "v1", REPLICAS), 60, "both replicas")
        yield cluster
        cluster.http.close()


def light(asked: list[Ask]) -> list[Ask]:
    """Short and long ones, but not the longest: the load shares two CPUs with all that it loads."""
    return [ask for ask in asked if (ask.output_tokens or 0) < 450]


async def under_load(cluster: Cluster, work: Callable[[Load], Any], before: float = 1.0) -> tuple[Load, Any]:
    """Does that beside a load, in another thread; the load is over then."""
    async with Load(cluster.url, light(asks("tiny-r1"))) as load:
        load.start(8)
        await asyncio.sleep(before)
        found = await asyncio.to_thread(work, load)
        await load.stop()
        return load, found


async def references(cluster: Cluster) -> tuple[str, dict[str, Answer]]:
    """(the version that is served, its right answers). They are asked for once: so it has to answer ever after."""
    version = cluster.stable()
    if version not in cluster.references:
        async with Load(cluster.url, light(asks("tiny-r1"))) as load:
            found, cluster.references[version] = await load.references((6, 2))
        assert found == version
    return version, cluster.references[version]


async def test_a_version_takes_the_others_place_under_load(cluster: Cluster) -> None:
    old, of_old = await references(cluster)
    engines = {replica["engine"]["pid"] for replica in cluster.session.status()["replicas"]}
    cluster.sights.clear()
    load, how = await under_load(cluster, lambda _: cluster.wait(cluster.start("v2")))
    new, of_new = await references(cluster)
    assert (old, new, how.phase) == ("v1", "v2", "done"), cluster.told()
    found = tally(load.exchanges, {old: of_old, new: of_new})
    assert found.by_verdict[Verdict.RIGHT] > 30
    assert not found.wrong, found.wrong
    assert found.by_version["v1"] > 10 and found.by_version["v2"] > 10
    assert extra_replicas(cluster.sights, REPLICAS) == 0
    # In place: the very engines, no other process.
    assert {replica["engine"]["pid"] for replica in cluster.session.status()["replicas"]} == engines


def test_an_answer_says_its_version(cluster: Cluster) -> None:
    reply = cluster.ask()
    assert reply.headers["x-moray-version"] == "v2" and reply.json()["system_fingerprint"].endswith("-v2")
    assert cluster.ask({"x-moray-version": "v2"}).status_code == 200
    unknown = cluster.ask({"x-moray-version": "v9"})
    assert unknown.status_code == 400 and "v9" in unknown.text


def test_two_at_once_are_refused_and_the_first_is_aborted(cluster: Cluster) -> None:
    rollout = cluster.start("v1", step_s=30)
    said = cluster.post("", {"version": "swapped-experts"}, expected=409)
    assert "v1" in said["error"]["message"]
    cluster.wait_for_phase("canary")
    cluster.post("/current", {"command": "pause"})
    assert cluster.report()["current"]["paused"] is True
    cluster.post("/current", {"command": "abort"})
    assert cluster.wait(rollout).phase == "rolled-back"
    assert cluster.versions() == {"v2"}
    cluster.post("/current", {"command": "abort"}, expected=409)


def test_undo_goes_back_and_promote_does_not_wait(cluster: Cluster) -> None:
    """Nothing is asked meanwhile: without an operator's word the gates would wait for requests."""
    rollout = str(cluster.post("/undo", {})["current"]["id"])
    cluster.post("/current", {"command": "promote"})
    assert cluster.wait(rollout).phase == "done"
    assert cluster.versions() == {"v1"} and cluster.ask().headers["x-moray-version"] == "v1"


def test_an_unknown_version_is_refused_before_anything_is_touched(cluster: Cluster) -> None:
    reply = cluster.http.post("/moray/rollouts", json={"version": "v9"})
    assert reply.status_code == 409 and "v9" in reply.text
    assert cluster.report()["current"] is None and cluster.versions() == {"v1"}


@pytest.mark.parametrize("bad", [Fault.SWAPPED_EXPERTS, Fault.CRASH_AT_LOAD])
async def test_a_bad_version_that_probes_or_loading_find_answers_nobody(cluster: Cluster, bad: Fault) -> None:
    old, of_old = await references(cluster)
    load, how = await under_load(cluster, lambda _: cluster.wait(cluster.start(bad)))
    found = tally(load.exchanges, {old: of_old})
    assert how.phase == "rolled-back" and FOUND[bad] in how.why, how
    assert not found.wrong, found.wrong
    assert set(found.by_version) == {"v1"} and found.by_verdict[Verdict.RIGHT] > 10


async def test_a_bad_version_that_only_traffic_finds_is_taken_back(cluster: Cluster) -> None:
    _, of_old = await references(cluster)
    began_s = time.monotonic()
    load, how = await under_load(cluster, lambda _: cluster.wait(cluster.start(UNASKED)))
    found = tally(load.exchanges, {"v1": of_old})
    assert how.phase == "rolled-back" and how.why, how
    assert not found.wrong, found.wrong
    back = way_back(load.exchanges, UNASKED, began_s, time.monotonic())
    assert back.answered > 0 and back.rollback_s is not None, (how, cluster.told()[-8:])
    assert back.bad_share <= 0.3
    assert cluster.versions() == {"v1"}


@pytest.mark.parametrize("end", ["promoted", "aborted", "bad"])
def test_a_controller_that_is_killed_leaves_one_version(cluster: Cluster, end: str) -> None:
    """Killed again and again, at random moments: what is served at the end is what was decided."""
    rng = random.Random(end)
    before = cluster.stable()
    version = {"v1": "v2", "v2": "v1"}[before] if end != "bad" else str(Fault.SWAPPED_EXPERTS)
    rollout = cluster.start(version, step_s=2)
    if end == "promoted":
        cluster.post("/current", {"command": "promote"})
    under_way = 0
    for kill in range(KILLS):
        controller = cluster._until(cluster.controller, 60, "the controller to come back")
        time.sleep(rng.uniform(0.1, 3.0))
        under_way += cluster.report()["current"] is not None
        controller.send_signal(signal.SIGKILL)
        if end == "aborted" and kill == 1:
            cluster.report()  # it is there again
            cluster.post("/current", {"command": "abort"})
    how = cluster.wait(rollout, 240)
    assert under_way >= 1, "it was over before the first kill"
    assert how.phase == {"promoted": "done", "aborted": "rolled-back", "bad": "rolled-back"}[end], how
    assert cluster.versions() == {version if how.phase == "done" else before} == {cluster.stable()}
    assert cluster.ask().headers["x-moray-version"] == cluster.stable()
