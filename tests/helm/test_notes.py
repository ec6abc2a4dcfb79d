"""What Helm prints works: its curl is run against a server that answers as a gateway does, and so is `helm test`'s."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from cases import CASES, KEYS, OPEN, tier
from helms import CHART, Cluster, Helm4, Object
from typer.testing import CliRunner

from ops.cli import app

Render = Callable[..., list[Object]]
KUBECTL = r"""#!/bin/sh
echo "$*" >>"$ASKED"
case "$*" in
  *port-forward*) ;;
  *nodePort*) printf %s "$PORT" ;;
  *) printf 127.0.0.1 ;;
esac
"""


class Gateway(ThreadingHTTPServer):
    """Keeps what it was asked: path, headers, body."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        super().__init__(("127.0.0.1", 0), _Answer)


class _Answer(BaseHTTPRequestHandler):
    server: Gateway

    def do_GET(self) -> None:
        self._told({})
        self._say("application/json", json.dumps({"data": [{"id": "tiny-r1"}]}))

    def do_POST(self) -> None:
        self._told(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        delta = {"choices": [{"delta": {"content": "75"}, "finish_reason": "stop"}]}
        self._say("text/event-stream", f"data: {json.dumps(delta)}\n\ndata: [DONE]\n\n")

    def _told(self, body: Any) -> None:
        self.server.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))

    def _say(self, kind: str, text: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    server = Gateway()
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def notes_of(helm4: Helm4, values: Any) -> str:
    return helm4.notes(CHART, values, Cluster())


def asking_part(notes: str) -> str:
    """The shell lines between "Ask it:" and the next heading, which is not indented."""
    lines = notes.split("Ask it:\n", 1)[1].splitlines()
    part = []
    for line in lines:
        if line and not line.startswith(" "):
            break
        part.append(line)
    return "\n".join(part)


def run(part: str, directory: Path, port: int) -> list[str]:
    """Runs the lines with a kubectl that knows where the gateway is; returns what that was asked."""
    kubectl = directory / "kubectl"
    kubectl.write_text(KUBECTL)
    kubectl.chmod(0o755)
    asked = directory / "asked"
    asked.touch()
    env = {"PATH": f"{directory}:{os.environ['PATH']}", "ASKED": str(asked), "PORT": str(port)}
    done = subprocess.run(
        ["/bin/bash", "-euc", f"{part}\nwait"], env=env, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert '"content": "75"' in done.stdout
    return asked.read_text().splitlines()


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("way", ["forward", "load-balancer", "node-port", "ingress", "keys", "gateway-api"])
def test_the_curl_works(way: str, helm4: Helm4, gateway: Gateway, tmp_path: Path) -> None:
    port = gateway.server_port
    here = f"127.0.0.1:{port}"
    values: dict[str, dict[str, Any]] = {
        "forward": OPEN | {"service": {"port": port}},
        "load-balancer": OPEN | {"service": {"port": port, "type": "LoadBalancer"}},
        "node-port": OPEN | {"service": {"type": "NodePort"}},
        "ingress": OPEN | {"ingress": {"enabled": True, "hosts": [here]}},
        "keys": KEYS | {"service": {"port": port}},
        "gateway-api": OPEN | {"gatewayApi": {"enabled": True, "parentRefs": [{"name": "g"}], "hostnames": [here]}},
    }
    asked = run(asking_part(notes_of(helm4, values[way])), tmp_path, port)
    [(path, headers, body)] = gateway.asked
    assert path == "/v1/chat/completions" and body["model"] == "tiny-r1" and body["stream"] is True
    assert headers.get("authorization", "").startswith("Bearer moray-") is (way == "keys")
    named = {
        "forward": "service/r1-moray-gateway",
        "load-balancer": "r1-moray-gateway",
        "keys": "service/r1-moray-gateway",
    }
    assert named.get(way, "") in " ".join(asked) and all("-n llm" in line for line in asked if "get nodes" not in line)


def test_other_ways_in_are_told_too(helm4: Helm4) -> None:
    assert "URL=https://llm.example.org\n" in notes_of(helm4, CASES["ingress"])
    assert "get gateway r1-moray-gateway" in notes_of(helm4, CASES["incremental"])
    assert "get ingress r1-moray" in notes_of(helm4, OPEN | {"ingress": {"enabled": True}})


def test_notes_tell_how_to_test_upgrade_and_go_back(helm4: Helm4) -> None:
    embedded, tiered = notes_of(helm4, OPEN), notes_of(helm4, tier("32b"))
    assert "helm -n llm test r1" in embedded and "rollback" not in embedded  # it has no other version
    assert '"model": "qwen3"' in tiered and "serves qwen3 (v1) as the RayService r1-moray" in tiered
    assert "--reuse-values --set model.version=VERSION" in tiered and "helm -n llm rollback r1" in tiered


def the_test(objects: list[Object]) -> Object | None:
    return next((each for each in objects if each["kind"] == "Pod"), None)


def test_helm_test_asks_for_the_models_and_streams_a_chat(render: Render, gateway: Gateway) -> None:
    pod = the_test(render(OPEN))
    assert pod is not None and pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    program, *arguments = pod["spec"]["containers"][0]["command"]
    assert program == "moray" and "http://r1-moray-gateway:8000" in arguments
    here = [
        argument.replace("http://r1-moray-gateway:8000", f"http://127.0.0.1:{gateway.server_port}")
        for argument in arguments
    ]
    result = CliRunner().invoke(app, here)
    assert result.exit_code == 0 and "75" in result.output, result.output
    assert [path for path, _, _ in gateway.asked] == ["/v1/models", "/v1/chat/completions"]
    assert gateway.asked[1][2]["stream"] is True
    gateway.shutdown()
    gateway.server_close()
    assert CliRunner().invoke(app, here).exit_code == 1


def test_helm_test_has_a_key_where_one_is_asked_for(render: Render) -> None:
    pod = the_test(render(KEYS))
    assert pod is not None
    [key] = [each for each in pod["spec"]["containers"][0]["env"] if each["name"] == "MORAY_API_KEY"]
    assert key["valueFrom"] == {"secretKeyRef": {"name": "watcher-key", "key": "api-key"}}
    without = {"auth": {"existingSecret": "moray-keys"}, "nodeWatcher": {"enabled": False}}
    assert the_test(render(without)) is None
    assert (
        the_test(render(CASES["incremental"]))["spec"]["containers"][0]["command"][3] == "http://r1-moray-clusters:8000"
    )
