"""Helm 3 and Helm 4 behind one interface: what they do with releases on the tests' API server.

Helm 4 comes as a library; it runs in a process of its own, so that its Go runtime stays out of pytest.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import helms
import pytest

VERSIONS = (helms.Helm3.version, helms.Helm4.version)
# For tests that one Helm is enough for; where none is installed, `helm` skips them.
INSTALLED = next((version for version in VERSIONS if not helms.missing(version)), VERSIONS[0])
_LIMIT_S = 60
_ACTION_OF_HELM_4 = """
import json, sys
import helm_python
asked = json.load(sys.stdin)
try:
    with helm_python.Config(kubeconfig_path=asked["kubeconfig"], namespace=asked["namespace"]) as helm:
        getattr(helm, asked["action"])(*asked["arguments"], **asked["options"])
except helm_python.HelmError as error:
    sys.exit(str(error))
"""


class HelmFailed(Exception):
    """What Helm said."""


class Helm(Protocol):
    """One version of Helm, for one namespace. Every action raises HelmFailed if Helm does not do it."""

    def install(self, release: str, chart: Path, values: Mapping[str, Any]) -> None: ...

    def upgrade(self, release: str, chart: Path, values: Mapping[str, Any]) -> None:
        """With these values and the chart's own; those given before count no more."""

    def rollback(self, release: str, revision: int) -> None: ...

    def uninstall(self, release: str) -> None: ...


def helm(version: str, kubeconfig: Path, namespace: str) -> Helm:
    """Skips the test if this version is not installed."""
    if why := helms.missing(version):
        pytest.skip(why)
    kind = _Helm3 if version.startswith("3.") else _Helm4
    return kind(helms.CACHE / f"helm-{version}", kubeconfig, namespace)


class _Helm3:
    def __init__(self, where: Path, kubeconfig: Path, namespace: str) -> None:
        self._command = [str(where / "helm"), "--kubeconfig", str(kubeconfig), "--namespace", namespace]

    def install(self, release: str, chart: Path, values: Mapping[str, Any]) -> None:
        self._run("install", release, str(chart), "--values", "-", values=values)

    def upgrade(self, release: str, chart: Path, values: Mapping[str, Any]) -> None:
        self._run("upgrade", release, str(chart), "--reset-values", "--values", "-", values=values)

    def rollback(self, release: str, revision: int) -> None:
        self._run("rollback", release, str(revision))

    def uninstall(self, release: str) -> None:
        self._run("uninstall", release)

    def _run(self, *arguments: str, values: Mapping[str, Any] | None = None) -> None:
        _run([*self._command, *arguments], json.dumps(values or {}), os.environ)


class _Helm4:
    def __init__(self, where: Path, kubeconfig: Path, namespace: str) -> None:
        self._where = where
        self._asked = {"kubeconfig": str(kubeconfig), "namespace": namespace}

    def install(self, release: str, chart: Path, values: Mapping[str, Any]) -> None:
        self._do("install", str(chart), release, dict(values))

    def upgrade(self, release: str, chart: Path, values: Mapping[str, Any]) -> None:
        self._do("upgrade", str(chart), release, dict(values), reset_values=True)

    def rollback(self, release: str, revision: int) -> None:
        self._do("rollback", release, version=revision)

    def uninstall(self, release: str) -> None:
        self._do("uninstall", release)

    def _do(self, action: str, *arguments: Any, **options: Any) -> None:
        asked = self._asked | {"action": action, "arguments": arguments, "options": options}
        environment = os.environ | {"PYTHONPATH": str(self._where)}
        _run([sys.executable, "-c", _ACTION_OF_HELM_4], json.dumps(asked), environment)


def _run(command: list[str], given: str, environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        command, input=given, env=environment, capture_output=True, text=True, timeout=_LIMIT_S, check=False
    )
    if done.returncode:
        raise HelmFailed(done.stderr.strip())
