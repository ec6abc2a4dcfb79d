"""A gateway for the console's tests: the real routes and the real edge, with answers that a test chooses."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse

from cluster.edge import Edge
from cluster.extensions import GatewayContext
from cluster.outcomes import context_of_request
from cluster.tenants import Holder, KeyRing, hash_of
from ops.console import routes
from replicas.messages import Tenant

OPERATOR_KEY, READER_KEY = "operators-key", "readers-key"
XSS = "<img src=x onerror=\"document.title='broken in'\">"


class StubGateway:
    """`answers` by path under /moray/: a JSON value, or an int: the HTTP status to fail with."""

    def __init__(self, keys: bool) -> None:
        self.answers: dict[str, Any] = everything()
        self.asked: dict[str, int] = {}  # path -> how often
        self.runbooks: dict[str, str] = {}
        self.brief = False  # so was the status asked for last
        self.drains: list[dict[str, Any]] = []
        self.commands: list[dict[str, Any]] = []  # to the rollout
        self.refusal: str | None = None  # of the next drain or command
        app = FastAPI()
        context = SimpleNamespace(require_operator=self._require_operator)  # all that the routes use
        routes.add(app, cast(GatewayContext, context), self.runbooks)

        @app.get("/moray/{name}")
        async def told(name: str, brief: bool = False) -> JSONResponse:
            self.asked[name] = self.asked.get(name, 0) + 1
            answer = self.answers.get(name, 404)
            self.brief = brief if name == "status" else self.brief
            if isinstance(answer, int):
                raise HTTPException(answer, "The router does not answer.")
            return JSONResponse(answer)

        @app.post("/moray/drain")
        async def drain(request: Request) -> dict[str, str]:
            self._require_operator(request)
            if self.refusal:
                raise HTTPException(409, self.refusal)
            asked = await request.json()
            self.drains.append(asked)
            return {"replica": asked["replica"]}

        @app.post("/moray/rollouts/current")
        async def command(request: Request) -> dict[str, str]:
            self._require_operator(request)
            if self.refusal:
                raise HTTPException(409, self.refusal)
            self.commands.append(await request.json())
            return {}

        tenants = {OPERATOR_KEY: "ops", READER_KEY: "acme"}
        ring = KeyRing({hash_of(key): Holder(Tenant(name=name), 0) for key, name in tenants.items()})

        async def in_force() -> KeyRing:
            return ring

        self._keys = keys
        self.app = Edge(app, max_body_bytes=1 << 20, retry_after_s=1, keys=in_force if keys else None)

    def _require_operator(self, _: Request) -> None:
        context = context_of_request.get()
        if self._keys and (context is None or context.tenant.name != "ops"):
            raise HTTPException(403, "This API key is no operator's.")


class Running:
    """A stub that serves; it can go away and come back on the same port."""

    def __init__(self, stub: StubGateway) -> None:
        self.stub = stub
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._start()

    def _start(self) -> None:
        config = uvicorn.Config(self.stub.app, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def go_away(self) -> None:
        address = self._socket.getsockname()
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()
        self._address = address

    def come_back(self) -> None:
        self._socket = socket.create_server(self._address)
        self._start()


@contextmanager
def stub_gateway(keys: bool = False) -> Iterator[Running]:
    running = Running(StubGateway(keys))
    try:
        yield running
    finally:
        running.go_away()


# -- what a busy cluster tells ----------------------------------------------------------------------------------------


def replica(number: int, **changed: Any) -> dict[str, Any]:
    told = {
        "id": f"moray#replica#x{number:03d}",
        "state": "ready",
        "epoch": int((time.time() - 4000 * (number + 1)) * 1e9),
        "version": "2026-11",
        "address": f"10.0.0.{number}:4000",
        "engine": {"pid": 4000 + number, "host": "process"},
        "capacity": {"kv_tokens": 65536, "block_tokens": 16, "max_num_seqs": 64, "max_num_batched_tokens": 2048},
        "running": 20 + 17 * (number % 3),
        "waiting": number % 2,
        "granted": 21,
        "kv_tokens_granted": 1000,
        "kv_used_fraction": 0.31 + 0.29 * (number % 3),
        "shards": [
            {
                "rank": r,
                "pid": 5000 + r,
                "device": "cuda",
                "experts_by_layer": [[0, 1, 2, 3]] * 4,
                "expert_bytes": 3 << 20,
            }
            for r in range(4)
        ],
    }
    return told | changed


def status(replicas: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "model": {"name": "tiny-r1", "path": "/models/tiny-r1"},
        "replicas": replicas,
        "gateways": [{"id": "gateway-1"}, {"id": "gateway-2"}],
        "gateway": {"pid": 1, "open_requests": 70, "resumed": 12, "moved": 2, "quarantined": 0},
        "router": {"queued": 37, "granted": 95, "pid": 2},
        "queue": {
            "rows": [
                {"tenant": "acme", "priority": 0, "requests": 21, "prompt_tokens": 48210, "oldest_s": 3.2},
                {"tenant": "research", "priority": 5, "requests": 11, "prompt_tokens": 9120, "oldest_s": 11.8},
                {"tenant": "", "priority": 0, "requests": 3, "prompt_tokens": 812, "oldest_s": 0.4},
            ],
            "others": {"rows": 2, "requests": 2, "prompt_tokens": 90, "oldest_s": 0.1},
        },
        "tenants": [],
    }


def history() -> dict[str, Any]:
    now = time.time()
    rows = []
    for n in range(120):
        calm = 1 + 0.25 * math.sin(n / 9) + 0.12 * math.sin(n * 1.7)
        peak = 1 + 2.4 * math.exp(-(((n - 88) / 5) ** 2))
        quiet = 30 <= n < 36
        rows.append(
            {
                "at_s": now - 5 * (119 - n),
                "requests": 0 if quiet else round(60 * calm),
                "failed": 1 if n == 88 else 0,
                "shed": 3 if n == 88 else 0,
                "ttft_p50": None if quiet else 0.085 * calm * peak,
                "ttft_p95": None if quiet else 0.190 * calm * peak,
                "tpot_p50": None if quiet else 0.0121 * calm,
                "tpot_p95": None if quiet else 0.0172 * calm * (1 + (peak - 1) / 4),
                "output_tokens": 0 if quiet else round(12000 * calm),
                "queue": round(4 * calm * peak),
                "running": 90,
            }
        )
    return {"bucket_s": 5, "since_s": now - 600, "rows": rows}


def alarm(name: str, severity: str, summary: str, **labels: str) -> dict[str, Any]:
    told = {"name": name, "severity": severity, "summary": summary, "runbook": name, "raised_s": time.time() - 140}
    return told | {"labels": {"model": "tiny-r1"} | labels}


def alarms() -> dict[str, Any]:
    slow = alarm("replica-latency", "page", "5 requests in a row took longer than 2 s.", replica="moray#replica#x001")
    drift = alarm("ttft-drift", "ticket", "TTFT of prompts up to 256 tokens is 2.1 times what it was.")
    gone = alarm("error-burst", "page", "6 of 9 requests failed in 10 s.")
    now = time.time()
    return {
        "alarms": [slow, drift],
        "recent": [
            {"at_s": now - 900, "raised": True, "alarm": gone},
            {"at_s": now - 700, "raised": False, "alarm": gone},
            {"at_s": now - 140, "raised": True, "alarm": slow},
        ],
        "healing": [
            {
                "at_s": now - 130,
                "replica": "moray#replica#x001",
                "action": "drain",
                "outcome": "done",
                "why": "replica-latency",
            }
        ],
        "watching": True,
    }


def experts(layers: int = 4, of: int = 16, shards: int = 4) -> dict[str, Any]:
    tokens = [
        [round(1000 * (1 + 0.9 * math.sin(3 * layer + 7 * e)) / (1 + 0.15 * e)) for e in range(of)]
        for layer in range(layers)
    ]
    wide = of // shards
    by_shard = [[sum(row[s * wide : (s + 1) * wide]) for s in range(shards)] for row in tokens]
    over = [max(row) * shards / sum(row) for row in by_shard]
    return {
        "model": "tiny-r1",
        "layers": [f"model.layers.{layer}.mlp.experts" for layer in range(layers)],
        "tokens": tokens,
        "shard_tokens": by_shard,
        "seconds": 60.0,
        "replicas": [
            {"id": f"moray#replica#x{n:03d}", "seconds": 60.0, "tokens": 1, "shards": [], "shard_max_over_mean": over}
            for n in range(3)
        ],
    }


def rollouts(**current: Any) -> dict[str, Any]:
    now = time.time()
    gate = {"n_stable": 180, "n_canary": 121}
    running = {
        "id": "r7",
        "from": "2026-11",
        "to": "2026-12",
        "phase": "canary",
        "step": 0,
        "steps": [0.1, 0.5],
        "share": 0.1,
        "paused": False,
        "strategy": "in-place",
        "since_s": now - 40,
        "why": "The step is watched for 20 s more.",
        "gates": [
            {"name": "ttft", "answer": "yes", "detail": "0.98 times the stable version's"} | gate,
            {"name": "length", "answer": "no", "detail": "3.1 times as long"} | gate,
            {"name": "errors", "answer": "unknown", "detail": "too few requests"} | gate,
        ],
        "replicas": [
            {"id": "moray#replica#x000", "version": "2026-12", "phase": "done"},
            {"id": "moray#replica#x001", "version": "2026-11", "phase": ""},
        ],
        "started_by": "ops",
        "events": [],
    }
    before = {
        "id": "r6",
        "from": "2026-10",
        "to": "2026-11",
        "phase": "done",
        "ended_s": now - 90000,
        "why": "promoted",
    }
    worse = {
        "id": "r5",
        "from": "2026-10",
        "to": "bad",
        "phase": "rolled-back",
        "ended_s": now - 99000,
        "why": "length",
    }
    versions = {"2026-11": {"replicas": 2, "share": 0.9}, "2026-12": {"replicas": 1, "share": 0.1}}
    told = {"current": running | current, "history": [worse, before], "stable": "2026-11", "versions": versions}
    return told | {"note": "2027-01 is wanted next."}


def everything() -> dict[str, Any]:
    replicas = [replica(0), replica(1), replica(2, state="draining")]
    none = {
        "current": None,
        "history": [],
        "stable": "2026-11",
        "versions": {"2026-11": {"replicas": 3, "share": None}},
    }
    told = {"status": status(replicas), "history": history(), "alarms": alarms(), "experts": experts()}
    return told | {"rollouts": none}
