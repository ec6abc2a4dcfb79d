"""An engine core whose every token is known in advance, and helpers to host one and to speak with it. Imports no vLLM.

The next token is a pure function of all tokens so far, as in greedy decoding: a stream that is resumed elsewhere must
go on exactly as it would have. `continuation` says how.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import threading
import time
import zlib
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from replicas.core import CoreLoad, Probed, ReloadFailed, RequestRejected, StepOutput
from replicas.core_host import Failed, Ready, Stop, hang_up, host_core
from replicas.engine_spec import EngineSpec
from replicas.messages import Capacity, Probe, ReplicaInfo, Work
from replicas.wire import Buffer, Connection, Kind

VOCABULARY = 1000
REFUSED = VOCABULARY + 1  # a prompt with this token is rejected
STOP, LENGTH = 0, 1  # vllm.v1.engine.FinishReason


def next_token(tokens: Sequence[int], version: str = "") -> int:
    return zlib.crc32(array("I", tokens).tobytes(), zlib.crc32(version.encode())) % VOCABULARY


def continuation(prompt: Sequence[int], count: int, version: str = "") -> list[int]:
    """The `count` tokens that follow the prompt."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens, version))
    return tokens[len(prompt) :]


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """How the core behaves."""

    step_s: float = 0.0  # seconds that a step takes
    max_num_seqs: int = 64
    kv_tokens: int = 1 << 20
    fail_at_step: int | None = None  # this step, counted from 1, raises
    load_s: float = 0.0  # seconds until it is built
    shout: bool = False  # it prints its environment as JSON
    fail_to_load: str | None = None  # it cannot be built, for this reason
    model: str = ""  # its directory
    fail_to_reload: dict[str, str] = {}  # directory -> why its weights cannot be loaded, as is seen half-way
    reload_s: float = 0.0  # seconds that a reload takes


class _Request(msgspec.Struct):
    client: int
    tokens: list[int]
    left: int
    min_left: int
    stop_token_ids: list[int]


class ScriptedCore:
    """`replicas.core.EngineCore`. The script is the spec's `engine_args`."""

    moves_experts = False

    def __init__(self, spec: EngineSpec) -> None:
        self.script = script = msgspec.convert(spec.engine_args, Script)
        time.sleep(script.load_s)
        if script.shout:
            os.write(1, json.dumps(dict(os.environ)).encode())
        if script.fail_to_load:
            raise ValueError(script.fail_to_load)
        self.capacity = Capacity(
            kv_tokens=script.kv_tokens,
            block_tokens=16,
            max_num_seqs=script.max_num_seqs,
            max_num_batched_tokens=1024,
            max_model_len=4096,
        )
        self.requests: dict[str, _Request] = {}
        self.prompts: dict[str, list[int]] = {}  # every request ever taken
        self.delivered: dict[str, list[int]] = {}  # what each of them had when it was
        self.prefill_tokens = self.decode_tokens = 0
        self.go_on = threading.Event()  # cleared: the next step hangs
        self.go_on.set()
        self.steps = 0
        self.polls = 0  # calls of has_work: a busy loop is one that has many
        self.was_shut_down = False
        self._started_with = script.model, spec.version
        self.version: str | None = spec.version  # None: of no use
        self.reloads: list[str] = []  # directories

    @property
    def checksum(self) -> str:
        return f"checksum of {self.version}" if self.version else ""

    def add(self, client: int, request: Sequence[Buffer], delivered: Sequence[int] = ()) -> str:
        # EngineCoreRequest and SamplingParams as vLLM encodes them: an array without, a map without its defaults.
        request_id, prompt, _, params, *_ = msgspec.msgpack.decode(request[0])
        if REFUSED in prompt:
            raise RequestRejected(request_id, "the prompt has the refused token")
        self.prompts[request_id], self.delivered[request_id] = prompt, list(delivered)
        self.prefill_tokens += len(prompt) + len(delivered)
        self.requests[request_id] = _Request(
            client,
            [*prompt, *delivered],
            params.get("max_tokens", 16) - len(delivered),
            params.get("min_tokens", 0) - len(delivered),
            params.get("stop_token_ids", []),
        )
        return str(request_id)

    def abort(self, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            self.requests.pop(request_id, None)

    def has_work(self) -> bool:
        self.polls += 1
        return bool(self.requests)

    def step(self) -> list[StepOutput]:
        self.steps += 1
        time.sleep(self.script.step_s)
        self.go_on.wait()
        if self.steps == self.script.fail_at_step:
            raise RuntimeError("the script says so")
        outputs: dict[int, list[Any]] = {}
        finished: dict[int, list[str]] = {}
        for request_id, request in list(self.requests.items())[: self.script.max_num_seqs]:
            assert self.version is not None, "a step without weights"
            token = next_token(request.tokens, self.version)
            self.decode_tokens += 1
            request.tokens.append(token)
            request.left -= 1
            request.min_left -= 1
            stopped = token in request.stop_token_ids and request.min_left <= 0
            reason = STOP if stopped else LENGTH if request.left == 0 else None
            if reason is not None:
                del self.requests[request_id]
                finished.setdefault(request.client, []).append(request_id)
            # EngineCoreOutput, up to its finish_reason
            outputs.setdefault(request.client, []).append([request_id, [token], None, None, None, reason])
        return [
            # EngineCoreOutputs, up to its timestamp
            StepOutput(client, [msgspec.msgpack.encode([0, rows, None, time.monotonic()])], finished.get(client, []))
            for client, rows in outputs.items()
        ]

    def load(self) -> CoreLoad:
        running = min(len(self.requests), self.script.max_num_seqs)
        work = Work(
            steps=self.steps,
            step_s=self.steps * self.script.step_s,
            prefill_tokens=self.prefill_tokens,
            decode_tokens=self.decode_tokens,
        )
        return CoreLoad(running, len(self.requests) - running, self.steps % 7 / 7 if running else 0.0, work)

    def placement(self) -> tuple[()]:
        return ()

    def routed_tokens(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """One layer with one expert, which is given everything."""
        return np.array([[self.prefill_tokens + self.decode_tokens]])

    def reload(self, directory: str, expected: str = "") -> str:
        """As the simulated core's; the directory need not be there, if it is not called "missing"."""
        assert not self.requests, "weights reloaded under running requests"
        self.reloads.append(directory)
        if Path(directory).name == "missing":
            raise ReloadFailed(f"there is no directory {directory}", touched=False)
        time.sleep(self.script.reload_s)
        if reason := self.script.fail_to_reload.get(directory):
            self.version = None
            raise ReloadFailed(reason, touched=True)
        model, version = self._started_with
        self.version = version if directory == model else Path(directory).name
        if expected and self.checksum != expected:
            raise ReloadFailed(f"the loaded weights have the {self.checksum}, not {expected}", touched=True)
        return self.checksum

    def probe(self, probes: Sequence[Probe]) -> list[Probed]:
        assert self.version is not None, "probes without weights"
        return [
            Probed(
                tuple(continuation(probe.prompt, probe.max_tokens, self.version)), tuple(-0.5 for _ in probe.logprobs)
            )
            for probe in probes
        ]

    def shutdown(self) -> None:
        self.was_shut_down = True


def spec(host: str = "thread", start_timeout_s: float = 20.0, version: str = "", **script: Any) -> EngineSpec:
    return EngineSpec(
        model="scripted",
        version=version,
        engine_args=script,
        host=host,
        device="cuda",  # on which the environment stays as it is
        shards=1,
        listen="127.0.0.1",
        start_timeout_s=start_timeout_s,
        drain_s=0.0,
        core="scripted_core:ScriptedCore",
    )


class Hosted:
    """A core host in a thread of ours, seen from its replica's end of the pipe."""

    def __init__(self, replica_id: str = "replica", epoch: int = 1, **script: Any) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        self.threads_before = set(threading.enumerate())
        self.core: ScriptedCore
        self.thread = threading.Thread(target=host_core, args=(self._build(script), theirs, "127.0.0.1"), daemon=True)
        self.thread.start()
        ready = self.pipe.recv()
        assert isinstance(ready, Ready), ready
        self.ready = ready
        self.info = ReplicaInfo(
            replica_id=replica_id,
            epoch=epoch,
            host="127.0.0.1",
            port=ready.port,
            token=ready.token,
            model="scripted",
            engine_pid=ready.pid,
            engine_host="thread",
            device="cpu",
            capacity=ready.capacity,
            shards=ready.shards,
        )

    def _build(self, script: dict[str, Any]) -> Callable[[], ScriptedCore]:
        def build() -> ScriptedCore:
            self.core = ScriptedCore(spec(**script))
            return self.core

        return build

    def said(self, timeout_s: float = 0.0) -> list[Any]:
        """What the host has told its replica, until it says no more for `timeout_s`."""
        messages = []
        with contextlib.suppress(EOFError, OSError):
            while self.pipe.poll(timeout_s):
                messages.append(self.pipe.recv())
        return messages

    def failure(self) -> Failed:
        return next(m for m in self.said(5.0) if isinstance(m, Failed))

    def stop(self) -> None:
        """In order, as a replica that is scaled down."""
        with contextlib.suppress(OSError):
            self.pipe.send(Stop())
        self.thread.join(5)

    def kill(self) -> None:
        """As a replica that is gone without a word."""
        self.core.go_on.set()
        hang_up(self.pipe)
        self.thread.join(5)

    @property
    def own_threads(self) -> list[str]:
        return [t.name for t in threading.enumerate() if t not in self.threads_before and t.name.startswith("core-")]


class Client:
    """A gateway's end of a connection, without the gateway."""

    def __init__(self) -> None:
        self.messages: list[tuple[Kind, list[bytes]]] = []
        self.lost = asyncio.Event()
        self.news = asyncio.Event()
        self.connection: Connection

    @classmethod
    async def to(cls, hosted: Hosted, token: str | None = None) -> Client:
        client = cls()
        _, client.connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(client._on_message, lambda _: client.lost.set()), "127.0.0.1", hosted.ready.port
        )
        client.connection.send(Kind.HELLO, [(hosted.ready.token if token is None else token).encode()])
        return client

    def _on_message(self, _: Connection, kind: Kind, buffers: list[bytes]) -> None:
        self.messages.append((kind, buffers))
        self.news.set()

    def add(self, request_id: str, prompt: Sequence[int], max_tokens: int) -> None:
        request = [request_id, list(prompt), None, {"max_tokens": max_tokens, "stop_token_ids": []}]
        self.connection.send(Kind.ADD, [msgspec.msgpack.encode(request)])

    def resume(self, request_id: str, prompt: Sequence[int], max_tokens: int, delivered: Sequence[int]) -> None:
        request = [request_id, list(prompt), None, {"max_tokens": max_tokens, "stop_token_ids": []}]
        self.connection.send(Kind.RESUME, [msgspec.msgpack.encode(delivered), msgspec.msgpack.encode(request)])

    def abort(self, *request_ids: str) -> None:
        self.connection.send(Kind.ABORT, [msgspec.msgpack.encode(request_ids)])

    @property
    def tokens(self) -> dict[str, list[int]]:
        """What has come so far, by request."""
        found: dict[str, list[int]] = {}
        for kind, buffers in self.messages:
            if kind is Kind.FRAME:
                for request_id, tokens, *_ in msgspec.msgpack.decode(buffers[0])[1]:
                    found.setdefault(request_id, []).extend(tokens)
        return found

    @property
    def finished(self) -> set[str]:
        frames = [msgspec.msgpack.decode(b[0])[1] for kind, b in self.messages if kind is Kind.FRAME]
        return {row[0] for rows in frames for row in rows if row[5] is not None}


async def until(condition: Callable[[], object], limit_s: float = 5.0) -> None:
    """Waits for something that another thread or task brings about."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        await asyncio.sleep(0.002)


def alive(pid: int) -> bool:
    """A zombie is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


PATH = str(Path(__file__).absolute().parent)  # PYTHONPATH for a process that shall build a scripted core
