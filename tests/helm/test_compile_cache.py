"""What worker pods keep of compiled code: where it lies, who writes there, and what is refused."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cases import OPEN, tier
from helms import Object, Refused
from validation import pods

Render = Callable[..., list[Object]]
FOLDER = "/var/cache/moray"
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "claim": ({"existingClaim": "compiled"}, {"persistentVolumeClaim": {"claimName": "compiled"}}),
    # "Directory": what kubelet made would be root's
    "node": ({"hostPath": "/data/compiled"}, {"hostPath": {"path": "/data/compiled", "type": "Directory"}}),
}
# Where each of them says in its source which variable it reads.
READ_BY = {
    "VLLM_CACHE_ROOT": ("vllm", "envs.py"),
    "TRITON_CACHE_DIR": ("triton", "knobs.py"),
    "TORCHINDUCTOR_CACHE_DIR": ("torch", "_inductor/runtime/cache_dir_utils.py"),
}


def groups(render: Render, cache: dict[str, Any]) -> dict[str, Object]:
    """Head and workers: two groups of them, and a container that runs before theirs."""
    ray = {"workerGroups": [{"name": name, "gpus": 4, "cpus": 24} for name in ("rack-a", "rack-b")]}
    objects = render(tier("32b") | {"ray": ray, "compileCache": cache})
    return {where: pod for where, pod in pods(objects) if where == "head" or where.startswith("worker ")}


def named(name: str, each: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [found for found in each if found["name"] == name]


def environment(container: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container["env"]}


@pytest.mark.parametrize("kind", KINDS)
def test_every_worker_keeps_what_it_compiles_and_the_head_has_no_part_in_it(kind: str, render: Render) -> None:
    cache, source = KINDS[kind]
    found = groups(render, cache)
    head = found.pop("head")
    assert len(found) == 2
    for pod in found.values():
        check, *_ = pod["spec"]["initContainers"]
        [ray] = pod["spec"]["containers"]
        assert named("compile-cache", pod["spec"]["volumes"]) == [{"name": "compile-cache"} | source]
        for container in (check, ray):
            mount = {"name": "compile-cache", "mountPath": FOLDER}
            assert named("compile-cache", container["volumeMounts"]) == [mount], container["name"]
        folders = {name: environment(ray)[name] for name in READ_BY}
        assert len(set(folders.values())) == len(folders), "each has its own"
        assert all(Path(folder).parent == Path(FOLDER) for folder in folders.values())
    # Its node, of CPUs only perhaps, need not have the folder.
    assert "compile-cache" not in str(head) and not READ_BY.keys() & environment(head["spec"]["containers"][0]).keys()


def test_without_one_there_is_nothing_of_it(render: Render) -> None:
    for pod in groups(render, {}).values():
        assert "compile-cache" not in str(pod) and FOLDER not in str(pod)
        assert not READ_BY.keys() & environment(pod["spec"]["containers"][0]).keys()


@pytest.mark.parametrize("variable", READ_BY)
def test_the_variables_are_those_that_are_read(variable: str) -> None:
    """A slip of the pen is silence: what is compiled would go with the pod."""
    package, file = READ_BY[variable]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"no {package} here")
    assert f'"{variable}"' in (Path(spec.origin).parent / file).read_text()


@pytest.mark.parametrize(
    ("cache", "said"),
    [
        (
            {"existingClaim": "a", "hostPath": "/b"},
            r"compileCache\.existingClaim and compileCache\.hostPath are both set",
        ),
        ({"hostPath": "data"}, r"compileCache\.hostPath is data: set it to the folder's absolute path on every node"),
        ({"hostPath": "./data"}, r"compileCache\.hostPath is \./data: set it to the folder's absolute path"),
    ],
)
def test_what_cannot_be_had_is_refused(cache: dict[str, Any], said: str, render: Render) -> None:
    with pytest.raises(Refused, match=said):
        render(OPEN | {"compileCache": cache})


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("claim", "cannot write the claim compiled; let it: its volume has to be writable for group 10001"),
        ("node", "cannot write the folder /data/compiled of this node; let it: chown 10001:10001 /data/compiled"),
    ],
)
def test_a_folder_that_cannot_be_written_is_told_with_the_way_out(
    kind: str, said: str, render: Render, tmp_path: Path
) -> None:
    check = groups(render, KINDS[kind][0])["worker rack-a"]["spec"]["initContainers"][0]

    def run(folder: Path) -> tuple[int, str]:
        words = [word.replace(FOLDER, str(folder)) for word in (*check["command"], *check["args"])]
        env = environment(check) | {"PATH": os.environ["PATH"]}
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stderr

    writable = tmp_path / "writable"
    writable.mkdir()
    assert run(writable) == (0, "") and not [*writable.iterdir()]
    code, told = run(tmp_path / "none")
    assert code == 1 and said in told
