"""Debian's Prometheus and Alertmanager on the real stack: a replica freezes, the alarm comes by both ways, and ends.

What the test changes in ops/alerts/moray.rules.yaml: every window and every `for` is a tenth, and nothing else. For
that, Ray tells its metrics each two seconds rather than each ten. Self-healing is off, so that the replica stays frozen
until its gateways give it up: it would be gone before the slower of the two ways has told of it (test_alarms.py).
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from http_server import Answer, Asked, http_server
from promql import OF_OTHERS, RULES, known_names, metric_names, node_watcher_names, of_dashboards

from ops.own_session import free_port
from replicas import metrics

PROMETHEUS, ALERTMANAGER = shutil.which("prometheus"), shutil.which("prometheus-alertmanager")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        PROMETHEUS is None or ALERTMANAGER is None, reason="apt-get install prometheus prometheus-alertmanager"
    ),
]
FASTER = 10
STREAMS = 24  # of which the busier replica has ten or more
# NVML answers where GPUs are; and nothing is healed or rolled here.
ON_GPUS = (metrics.GPU_UTILIZATION, metrics.GPU_MEMORY_USED, metrics.GPU_MEMORY_TOTAL)
OF_ROLLOUTS = (
    metrics.ROLLOUT_PHASE,
    metrics.ROLLOUT_SHARE,
    metrics.ROLLOUTS,
    metrics.SWAP_SECONDS,
    metrics.MIRRORED_REQUESTS,
)
UNSEEN = {metric.scraped for metric in (*ON_GPUS, *OF_ROLLOUTS, metrics.HEALINGS)} | node_watcher_names()


class Receiver:
    """Alertmanager's webhook: (monotonic seconds, status, labels) of each alert that it was sent."""

    def __init__(self) -> None:
        self.got: list[tuple[float, str, dict[str, str]]] = []

    def answer(self, asked: Asked) -> Answer:
        at = time.monotonic()
        self.got += [(at, alert["status"], alert["labels"]) for alert in asked.json["alerts"]]
        return Answer()

    def told(self, status: str, **labels: str) -> list[float]:
        """When it was told so of an alert with these labels; "": it has none of that name."""
        return [
            at
            for at, what, each in self.got
            if what == status and all(each.get(name, "") == value for name, value in labels.items())
        ]


@contextmanager
def running(command: list[str], ready: str, log: Path) -> Iterator[None]:
    """A server until the context is left; `ready` is a URL that answers 200 once it is."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                if httpx.get(ready, timeout=2, trust_env=False).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def shortened(duration: str) -> str:
    seconds = int(duration[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[duration[-1]]
    return f"{max(seconds // FASTER, 1)}s"


def faster_rules() -> str:
    """Our rules with every window and every `for` a tenth."""
    document = yaml.safe_load(RULES.read_text())
    for rule in (rule for group in document["groups"] for rule in group["rules"]):
        windows = re.compile(r"\[(\w+)(?::(\w+))?\]")
        rule["expr"] = windows.sub(
            lambda found: "[" + ":".join(shortened(part) for part in found.groups() if part) + "]", rule["expr"]
        )
        if rule.get("for", "0s") != "0s":
            rule["for"] = shortened(rule["for"])
    return yaml.safe_dump(document)


@contextmanager
def alertmanager(directory: Path, receiver_url: str, address: str) -> Iterator[str]:
    route = {
        "receiver": "test",
        "group_by": ["..."],
        "group_wait": "0s",
        "group_interval": "1s",
        "repeat_interval": "1h",
    }
    hook = {"url": receiver_url, "send_resolved": True}
    config = directory / "alertmanager.yaml"
    config.write_text(yaml.safe_dump({"route": route, "receivers": [{"name": "test", "webhook_configs": [hook]}]}))
    command = [str(ALERTMANAGER), f"--config.file={config}", f"--storage.path={directory / 'alertmanager'}"]
    command += [f"--web.listen-address={address}", "--cluster.listen-address="]
    with running(command, f"http://{address}/-/ready", directory / "alertmanager.log"):
        yield f"http://{address}"


@contextmanager
def prometheus(directory: Path, session: Any, alertmanager_url: str) -> Iterator[str]:
    (directory / "rules.yaml").write_text(faster_rules())
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(directory / "rules.yaml")],
        "alerting": {
            "alertmanagers": [{"static_configs": [{"targets": [alertmanager_url.removeprefix("http://")]}]}],
        },
        "scrape_configs": [
            {
                "job_name": "moray",
                "http_sd_configs": [{"url": f"{session.url}/moray/targets", "refresh_interval": "1s"}],
            }
        ],
    }
    file = directory / "prometheus.yaml"
    file.write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [str(PROMETHEUS), f"--config.file={file}", f"--storage.tsdb.path={directory / 'prometheus'}"]
    with running([*command, f"--web.listen-address={address}"], f"http://{address}/-/ready", directory / "p.log"):
        yield f"http://{address}"


def ask(prometheus_url: str, what: str, **parameters: str) -> Any:
    reply = httpx.get(f"{prometheus_url}/api/v1/{what}", params=parameters, timeout=20, trust_env=False)
    assert reply.status_code == 200, reply.text
    return reply.json()["data"]


async def streams(url: str, disturb: Callable[[], None] | None = None) -> list[tuple[int, str]]:
    """(tokens, finish reason) of each."""
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:

        async def one(i: int) -> tuple[int, str]:
            body = {"model": "tiny-r1", "prompt": f"{i}+34=" * 20, "max_tokens": 600, "ignore_eos": True}
            reply = await client.post("/v1/completions", json=body)
            assert reply.status_code == 200, reply.text
            return reply.json()["usage"]["completion_tokens"], reply.json()["choices"][0]["finish_reason"]

        asks = [asyncio.ensure_future(one(i)) for i in range(STREAMS)]
        if disturb is not None:
            await asyncio.sleep(0.4)
            disturb()
        return await asyncio.gather(*asks)


def test_a_frozen_replica_alarms_and_the_alarm_ends(
    unhealed: Any, alertmanager_address: str, tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    receiver = Receiver()
    with (
        http_server(receiver.answer) as receiver_url,
        alertmanager(tmp_path, receiver_url, alertmanager_address) as alerts_to,
        prometheus(tmp_path, unhealed, alerts_to) as server,
    ):
        eventually(lambda: jobs_up(server) == {"moray-gateway", "ray"}, 30, "Prometheus has scraped all")
        groups = ask(server, "rules")["groups"]
        assert sum(len(group["rules"]) for group in groups) == RULES.read_text().count("        expr:")
        assert asyncio.run(streams(unhealed.url)) == [(600, "length")] * STREAMS
        resumed = unhealed.status()["gateway"]["resumed"]
        frozen: list[Any] = []

        def freeze_the_busier_one() -> None:
            replica = max(unhealed.status()["replicas"], key=lambda replica: replica["granted"])
            os.kill(replica["engine"]["pid"], signal.SIGSTOP)
            frozen.extend([replica["id"], time.monotonic()])

        assert asyncio.run(streams(unhealed.url, freeze_the_busier_one)) == [(600, "length")] * STREAMS
        replica, frozen_at = frozen
        resumed = unhealed.status()["gateway"]["resumed"] - resumed
        assert resumed >= 10, "too little was running on the replica that froze"

        # The controller tells Alertmanager itself; Prometheus tells what it saw, and the controller's metric.
        not_serving = {"alertname": "up-but-not-serving", "replica": replica}
        ways = {
            "controller": not_serving | {"sign": ""},
            "rule": not_serving | {"sign": "no-step"},
            "rule over the controller": {
                "alertname": "controller-alarm",
                "alarm": "up-but-not-serving",
                "replica": replica,
            },
            "resumes": {"alertname": "resume-storm", "severity": "page"},
        }
        took = {}
        for way, labels in ways.items():
            eventually(lambda labels=labels: receiver.told("firing", **labels), 45, f"{labels} fires")
            took[way] = round(receiver.told("firing", **labels)[0] - frozen_at, 1)
        print("seconds from the freeze to the webhook:", took)  # noqa: T201
        assert took["controller"] < 15
        for labels in ways.values():
            eventually(lambda labels=labels: receiver.told("resolved", **labels), 120, f"{labels} is resolved")
        eventually(lambda: len(unhealed.status()["replicas"]) == 2, 120, "it is replaced")

        every_query_finds_what_it_names(server)
        every_path_of_a_runbook_answers(unhealed.url)


def jobs_up(server: str) -> set[str]:
    return {target["labels"]["job"] for target in ask(server, "targets")["activeTargets"] if target["health"] == "up"}


def every_query_finds_what_it_names(server: str) -> None:
    live = {re.sub("^vllm_", "vllm:", name) for name in ask(server, "label/__name__/values")}
    queries = of_dashboards() + [
        rule["expr"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    ]
    named = set().union(*(metric_names(query) for query in queries))
    assert live >= OF_OTHERS, "a metric of vLLM's or Ray's has another name"
    assert named - UNSEEN <= live and named <= known_names(), sorted(named - UNSEEN - live)
    for query in queries:
        ask(server, "query", query=query)


def every_path_of_a_runbook_answers(url: str) -> None:
    pages = "".join(page.read_text() for page in (RULES.parents[1] / "runbooks").glob("*.md"))
    paths = set(re.findall(r"^curl -s http://127\.0\.0\.1:8000(/\S+)", pages, re.MULTILINE))
    assert paths
    for path in paths:
        assert httpx.get(url + path, timeout=20, trust_env=False).status_code == 200, path
