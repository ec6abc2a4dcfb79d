"""The script that gets both Helms: what cannot be had is said, kept for the tests to tell, and stops nothing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from helms import CACHE, ROOT, Helm3, Helm4, missing

SCRIPT = ROOT / "scripts" / "install-kubernetes-tools"
NEEDED = ("bash", "dirname", "mkdir", "mktemp", "rm", "tee", "cat", "mv", "timeout", "sha256sum", "tar")


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment without npm and Python; the script lies where there is no .venv."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in NEEDED:
        (tools / tool).symlink_to(shutil.which(tool) or tool)
    (tmp_path / "checkout" / "scripts").mkdir(parents=True)
    shutil.copy(SCRIPT, tmp_path / "checkout" / "scripts")
    return {"PATH": str(tools), "XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path)}


def run(env: dict[str, str], tmp_path: Path) -> subprocess.CompletedProcess[str]:
    command = ["/bin/bash", str(tmp_path / "checkout" / "scripts" / SCRIPT.name)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_what_cannot_be_had_is_said_and_stops_nothing(
    bare: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run(bare, tmp_path)
    assert done.returncode == 0 and "the tests that need helm-3.10.1 are skipped" in done.stdout, done.stderr
    monkeypatch.setattr("helms.CACHE", tmp_path / "cache" / "moray")
    assert missing(Helm3.version) == "no Helm 3.10.1: npm is not installed (Debian: apt-get install npm)"
    assert missing(Helm4.version).startswith("no Helm 4.2.3: pip gave no helm-python-sdk==0.2.2")
    left = {path.name for path in (tmp_path / "cache" / "moray").iterdir()}
    assert left == {"helm-3.10.1.missing", "helm-4.2.3.missing"}


def test_another_file_than_the_one_that_was_written_down_is_refused(bare: dict[str, str], tmp_path: Path) -> None:
    """An npm that hands out something else under the name."""
    package = tmp_path / "package" / "bin"
    package.mkdir(parents=True)
    (package / "helm").write_text("#!/bin/sh\n")
    gzip = shutil.which("gzip")
    assert gzip
    (tmp_path / "bin" / "gzip").symlink_to(gzip)
    subprocess.run(["tar", "-czf", tmp_path / "helm.tgz", "-C", tmp_path, "package"], check=True)
    npm = tmp_path / "bin" / "npm"
    npm.write_text(f"#!/bin/bash\ncat {tmp_path}/helm.tgz >helm.tgz; echo helm.tgz\n")
    npm.chmod(0o755)
    assert "is not what it was when this script was written" in run(bare, tmp_path).stdout
    assert not (tmp_path / "cache" / "moray" / "helm-3.10.1").exists()


@pytest.mark.skipif(bool(missing(Helm3.version) or missing(Helm4.version)), reason="one of the Helms is not there")
def test_with_both_there_it_does_nothing(bare: dict[str, str], tmp_path: Path) -> None:
    done = run(bare | {"XDG_CACHE_HOME": str(CACHE.parent)}, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
