"""Both Helms behind one call: values in, Kubernetes objects out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "moray"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moray"
RELEASE, NAMESPACE = "r1", "llm"
# What the chart is rendered for: with all that it may use of KubeRay, the Prometheus operator, the Gateway API.
KUBERNETES = "1.33.0"
APIS = (
    "monitoring.coreos.com/v1/PodMonitor",
    "monitoring.coreos.com/v1/ServiceMonitor",
    "monitoring.coreos.com/v1/PrometheusRule",
    "monitoring.coreos.com/v1alpha1/ScrapeConfig",
    "gateway.networking.k8s.io/v1",
    "gateway.networking.k8s.io/v1/HTTPRoute",
    "ray.io/v1",
    "ray.io/v1/RayService",
)

Values = Mapping[str, Any]
Object = dict[str, Any]


class Refused(Exception):
    """Helm would not render; the message is Helm's."""


class Cluster(NamedTuple):
    """What a chart may ask of the cluster that it is rendered for."""

    version: str = KUBERNETES
    apis: Sequence[str] = APIS


class Helm(Protocol):
    version: str

    def render(self, chart: Path, values: Values, cluster: Cluster) -> list[Object]:
        """The objects, hooks included, by kind and name. Raises Refused."""

    def lint(self, chart: Path, values: Values) -> str:
        """What `helm lint --strict` complains of; "": nothing."""

    def close(self) -> None: ...


class Helm3:
    version = "3.10.1"

    def __init__(self, directory: Path) -> None:
        self._program = CACHE / f"helm-{self.version}" / "helm"
        self._values = directory / "values.json"  # YAML, too

    def render(self, chart: Path, values: Values, cluster: Cluster) -> list[Object]:
        flags = ["--kube-version", cluster.version, "--namespace", NAMESPACE]
        flags += [flag for api in cluster.apis for flag in ("--api-versions", api)]
        done = self._run("template", RELEASE, str(chart), *flags, values=values)
        if done.returncode:
            raise Refused(done.stderr)
        return _objects([done.stdout])

    def lint(self, chart: Path, values: Values) -> str:
        done = self._run("lint", "--strict", "--quiet", str(chart), values=values)
        return done.stdout + done.stderr if done.returncode else ""

    def close(self) -> None:
        pass

    def _run(self, *arguments: str, values: Values) -> subprocess.CompletedProcess[str]:
        self._values.write_text(json.dumps(values))
        command = [str(self._program), *arguments, "--values", str(self._values)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


class Helm4:
    version = "4.2.3"

    def __init__(self) -> None:
        path = os.pathsep.join([str(CACHE / f"helm-{self.version}"), os.environ.get("PYTHONPATH", "")])
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("helm4_server.py"))],
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def render(self, chart: Path, values: Values, cluster: Cluster) -> list[Object]:
        return _objects(
            [text for name, text in self.files(chart, values, cluster).items() if not name.endswith(".txt")]
        )

    def notes(self, chart: Path, values: Values, cluster: Cluster) -> str:
        [notes] = [text for name, text in self.files(chart, values, cluster).items() if name.endswith("NOTES.txt")]
        return notes

    def files(self, chart: Path, values: Values, cluster: Cluster) -> dict[str, str]:
        options = {"name": RELEASE, "namespace": NAMESPACE, "kube_version": f"v{cluster.version}"}
        options |= {"api_versions": list(cluster.apis)}
        told = self._ask({"chart": str(chart), "values": values, "options": options})
        files: dict[str, str] = told["files"]
        return files

    def lint(self, chart: Path, values: Values) -> str:
        told = self._ask({"chart": str(chart), "values": values, "lint": True, "kube_version": f"v{KUBERNETES}"})[
            "lint"
        ]
        bad = [f"{message['path']}: {message['error']}" for message in told["messages"] if message["severity"] >= 2]
        return "\n".join([*told["errors"], *bad])

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(timeout=30)

    def _ask(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(asked) + "\n")
        self._server.stdin.flush()
        told: dict[str, Any] = json.loads(self._server.stdout.readline())
        if "refused" in told:
            raise Refused(told["refused"])
        return told


def missing(version: str) -> str:
    """Why the tests cannot have this Helm; "": they can."""
    there = CACHE / f"helm-{version}"
    if (there / "helm").exists() or (there / "helm_python").exists():
        return ""
    reason = there.with_name(f"{there.name}.missing")
    why = reason.read_text().strip() if reason.exists() else "run scripts/install-kubernetes-tools"
    return f"no Helm {version}: {why}"


def _objects(texts: Sequence[str]) -> list[Object]:
    objects = [each for text in texts for each in yaml.load_all(text, Loader=yaml.CSafeLoader) if each is not None]
    return sorted(
        objects, key=lambda each: (each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"])
    )
