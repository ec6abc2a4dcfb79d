"""The shell scripts of the pods, run: what copies and verifies versions, and what goes before a pod's end.

Paths of a pod are put below a directory of the test; nothing else of a script is changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cases import CASES, OPEN, tier
from helms import ROOT, Object
from validation import pods

from experts.tiny_r1 import store_path

Render = Callable[..., list[Object]]
COPY = 'cp -r "$SOURCE/$VERSION/." "$TARGET"'


class Pod:
    """A directory in the place of a pod's root, and the versions that there are elsewhere."""

    def __init__(self, root: Path) -> None:
        self.store, self.bucket = root / "models/store", root / "bucket"
        self._root = root
        for made in ("etc/moray", "models/store", "bucket", "bin", "tmp"):
            (root / made).mkdir(parents=True)
        program = root / "bin" / "moray"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ops.cli "$@"\n')
        program.chmod(0o755)

    def wants(self, *versions: str) -> None:
        (self._root / "etc/moray/versions").write_text("\n".join(versions) + "\n")

    def put(self, version: str, directory: Path) -> Path:
        path = directory / version
        shutil.copytree(Path(store_path()) / "v1", path)
        return path

    def start(self, container: dict[str, Any], **env: str) -> subprocess.Popen[str]:
        words = [*container["command"], *container.get("args", [])]
        for path in ("/etc/moray/", "/models/store"):
            words = [word.replace(path, f"{self._root}{path}") for word in words]
        given = {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}
        here = {"PATH": f"{self._root}/bin:{os.environ['PATH']}", "HOME": str(self._root), "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            words, env=given | here | env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def run(self, container: dict[str, Any], **env: str) -> tuple[int, str]:
        process = self.start(container, **env)
        said, _ = process.communicate(timeout=60)
        return process.returncode, said


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    return Pod(tmp_path)


def container(objects: list[Object], name: str) -> dict[str, Any]:
    [worker] = [pod for where, pod in pods(objects) if where.startswith("worker")]
    of_worker = [*worker["spec"].get("initContainers", []), *worker["spec"]["containers"]]
    [found] = [each for each in of_worker if each["name"] == name]
    return dict(found)


@pytest.fixture
def copier(render: Render) -> dict[str, Any]:
    """The init container that copies, with a `command` of ours."""
    values = CASES["object-storage"]
    store = values["model"]["store"]
    storage = store["objectStorage"] | {"command": COPY, "env": []}
    model = values["model"] | {"store": store | {"objectStorage": storage}}
    return container(render(values | {"model": model}), "copy-versions")


def test_versions_of_the_list_are_copied_once(pod: Pod, copier: dict[str, Any]) -> None:
    for version in ("v1", "v2", "v3"):
        pod.put(version, pod.bucket)
    pod.wants("v1", "v2")
    code, said = pod.run(copier, SOURCE=str(pod.bucket))
    assert code == 0, said
    assert sorted(each.name for each in pod.store.iterdir()) == ["v1", "v2"]
    assert (pod.store / "v2" / "model.safetensors").stat().st_size > 1_000_000
    assert pod.run(copier, SOURCE="/nowhere") == (0, ""), "they are there already"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (f"{COPY}; rm $TARGET/moray.json", "has no moray.json"),
        (f"{COPY}; exit 3", "was not copied"),  # a moray.json is there, other files perhaps not
        (f"false; {COPY}", "was not copied"),
    ],
)
def test_what_was_not_copied_whole_is_no_version(pod: Pod, copier: dict[str, Any], command: str, said: str) -> None:
    pod.put("v1", pod.bucket)
    pod.wants("v1")
    code, told = pod.run(copier, SOURCE=str(pod.bucket), COPY=command)
    assert code != 0 and said in told
    assert not (pod.store / "v1").exists()
    assert pod.run(copier, SOURCE=str(pod.bucket), COPY=COPY)[0] == 0, "it is tried again"


def test_a_version_that_cannot_be_had_keeps_no_pod_of_another_from_starting(pod: Pod, copier: dict[str, Any]) -> None:
    pod.put("v1", pod.bucket)
    pod.wants("v0", "v1")
    code, said = pod.run(copier, SOURCE=str(pod.bucket))
    assert code == 0 and "version v0 was not copied" in said
    assert (pod.store / "v1" / "moray.json").exists() and not (pod.store / "v0").exists()


def test_versions_added_to_the_list_come_while_the_pod_runs(pod: Pod, render: Render) -> None:
    beside = container(render(CASES["object-storage"]), "copy-new-versions")
    beside["args"] = [beside["args"][0].replace("sleep 15", "sleep 0.2")]
    pod.wants("v1")
    process = pod.start(beside, SOURCE=str(pod.bucket), COPY=COPY)
    try:
        time.sleep(0.5)  # it finds nothing, which is no reason to end
        pod.put("v1", pod.bucket)
        pod.put("v2", pod.bucket)
        pod.wants("v1", "v2")
        until = time.monotonic() + 20
        while not all((pod.store / version / "moray.json").exists() for version in ("v1", "v2")):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
    finally:
        process.terminate()
        process.communicate(timeout=10)
    assert process.returncode == 0, "a pod's end does not wait for it"


@pytest.fixture
def verifier(render: Render) -> dict[str, Any]:
    return container(render(tier("7b")), "verify-versions")


def test_a_whole_version_is_let_through(pod: Pod, verifier: dict[str, Any]) -> None:
    pod.put("v1", pod.store)
    pod.wants("v1")
    code, said = pod.run(verifier)
    assert code == 0 and "v1: whole" in said, said


def test_a_damaged_version_keeps_the_pod_from_starting(pod: Pod, verifier: dict[str, Any]) -> None:
    weights = pod.put("v1", pod.store) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    pod.wants("v1")
    code, said = pod.run(verifier)
    assert code == 1 and "model.safetensors" in said, said


def test_a_version_that_is_not_there_keeps_no_pod_from_serving_another(pod: Pod, verifier: dict[str, Any]) -> None:
    """model.version may name one that nobody has, while the cluster goes on with what it serves."""
    pod.put("v1", pod.store)
    pod.wants("v9")
    code, said = pod.run(verifier)
    assert code == 0 and "no version v9" in said


# -- before the end ----------------------------------------------------------------------------------------------------

NAMESPACE = ["unshare", "--net", "--map-root-user"]  # connections of others on this machine are none of the pod's
LISTEN = """
import socket, subprocess, sys, time
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
port, open_s, script = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
server = socket.create_server(("127.0.0.1", port))
client = socket.create_connection(("127.0.0.1", port)); accepted, _ = server.accept()
begin = time.monotonic()
process = subprocess.Popen(["/bin/bash", "-c", script])
time.sleep(open_s)
print("running" if process.poll() is None else "ended")
accepted.close(); client.close()
process.wait(timeout=30)
print(time.monotonic() - begin, process.returncode)
"""


@pytest.fixture
def stopped(tmp_path: Path) -> Callable[..., tuple[str, float, str]]:
    """Runs a preStop hook while a connection to `port` is open: what was seen then, seconds to its end, Ray's call."""
    if subprocess.run([*NAMESPACE, "ip", "link", "set", "lo", "up"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespace can be made here (unshare, ip)")
    told = tmp_path / "told"
    ray = tmp_path / "ray"
    ray.write_text(f'#!/bin/sh\necho "$@" >>"{told}"\n')
    ray.chmod(0o755)

    def stop(script: str, port: int, open_s: float) -> tuple[str, float, str]:
        script = script.replace("sleep 10 ", "sleep 0.1 ")
        done = subprocess.run(
            [*NAMESPACE, sys.executable, "-c", LISTEN, str(port), str(open_s), script],
            env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        seen, end = done.stdout.split("\n", 1)
        seconds, code = end.split()
        assert code == "0"
        return seen, float(seconds), told.read_text() if told.exists() else ""

    return stop


def hook(objects: list[Object], where: str) -> str:
    [pod] = [pod for name, pod in pods(objects) if name.startswith(where)]
    command: list[str] = pod["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert command[:2] == ["/bin/bash", "-c"]
    return command[2]


@pytest.mark.parametrize(("port", "waits"), [(8000, True), (30007, True), (8080, False)])
def test_a_worker_waits_for_its_streams_and_for_those_of_other_nodes(
    render: Render, stopped: Callable[..., tuple[str, float, str]], port: int, waits: bool
) -> None:
    """8000: clients of its HAProxy; 30007: another node's HAProxy at a gateway here; 8080: Prometheus."""
    seen, _, told = stopped(hook(render(OPEN), "worker"), port, 3.0)
    assert seen == ("running" if waits else "ended")
    assert told.split()[0] == "drain-node" and "--deadline-remaining-seconds 120" in told


def test_it_waits_no_longer_than_the_drain_takes(
    render: Render, stopped: Callable[..., tuple[str, float, str]]
) -> None:
    script = hook(render(OPEN), "worker").replace("SECONDS + 120", "SECONDS + 3")
    seen, seconds, _ = stopped(script, 8000, 8.0)
    assert seen == "ended" and seconds >= 8.0


def test_the_head_waits_for_workers_that_end_with_it_and_drains_no_node(
    render: Render, stopped: Callable[..., tuple[str, float, str]]
) -> None:
    seen, _, told = stopped(hook(render(OPEN), "head"), 6379, 2.0)
    assert seen == "running" and told == ""
