"""`replicas.core.EngineCore` without a model: a simulated engine on the real clock, for a whole cluster without a GPU.

Its steps take as long as `step_time` says; its scheduler and its KV cache are `simulated_engine`'s. Each token is a
pure function of the version and of all tokens before it, as in greedy decoding: a stream that moves to another replica
must go on exactly as it would have, and not on one of another version. Built by an `EngineSpec` whose `core` is
`replicas.simulated_core:SimulatedCore`.
"""

import math
import time
import zlib
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from replicas.core import CoreLoad, Probed, ReloadFailed, RequestRejected, StepOutput
from replicas.engine_spec import EngineSpec
from replicas.messages import Capacity, Probe
from replicas.simulated_engine import SimulatedEngine
from replicas.simulated_request import SimulatedRequest
from replicas.step_time import H200, Machine
from replicas.wire import Buffer

FIRST_TOKEN, TOKENS = 32, 95  # printable ASCII where the vocabulary is bytes, plain tokens in others
STOP, LENGTH = 0, 1  # vllm.v1.engine.FinishReason


def next_token(tokens: Sequence[int], version: str = "") -> int:
    """What follows these tokens."""
    return _token(zlib.crc32(array("I", tokens).tobytes(), _seed(version)))


def _seed(version: str) -> int:
    """What a version's checksums begin with."""
    return zlib.crc32(version.encode())


def _token(crc: int) -> int:
    return FIRST_TOKEN + crc % TOKENS


class _Stream:
    """A request's tokens; only their checksum is needed to go on."""

    __slots__ = ("client", "crc", "left", "min_left", "stop_token_ids")

    def __init__(
        self, client: int, tokens: Sequence[int], left: int, min_left: int, stops: Sequence[int], seed: int
    ) -> None:
        self.client = client
        self.crc = zlib.crc32(array("I", tokens).tobytes(), seed)
        self.left = left  # tokens that it may still have
        self.min_left = min_left  # tokens before which no stop token counts
        self.stop_token_ids = frozenset(stops)

    def go_on(self) -> tuple[int, int | None]:
        """The next token, and why it is the last one, if it is."""
        token = _token(self.crc)
        self.crc = zlib.crc32(array("I", (token,)).tobytes(), self.crc)
        self.left -= 1
        self.min_left -= 1
        if token in self.stop_token_ids and self.min_left <= 0:
            return token, STOP
        return token, LENGTH if self.left == 0 else None


def _limits(capacity: Capacity, engine_args: dict[str, Any]) -> Capacity:
    """The machine's, with what the settings say; vLLM's other arguments mean nothing here."""
    names = ("max_num_seqs", "max_num_batched_tokens", "max_model_len")
    return msgspec.structs.replace(capacity, **{name: engine_args[name] for name in names if engine_args.get(name)})


def _chain(tokens: Sequence[int], block_tokens: int) -> tuple[int, ...]:
    """A name for each full block, which covers all before it. Not vLLM's: no load report tells them to a router."""
    name, names = 0, []
    for begin in range(0, len(tokens) - block_tokens + 1, block_tokens):
        name = hash((name, *tokens[begin : begin + block_tokens]))
        names.append(name)
    return tuple(names)


class SimulatedCore:
    """One core. `machine` and `speed` are for tests; a spec builds an H200 with the 32B tier."""

    moves_experts = False

    def __init__(self, spec: EngineSpec, machine: Machine = H200, speed: float = 1.0) -> None:
        self.capacity = _limits(machine.capacity, spec.engine_args)
        self._engine = SimulatedEngine(machine.step, self.capacity, speed, jump=False)
        self._streams: dict[str, _Stream] = {}
        self._started_with = str(spec.engine_args.get("model", "")), spec.version
        self._serve_version(spec.version)

    def _serve_version(self, version: str) -> None:
        self._seed = _seed(version)
        self.checksum = f"{self._seed:08x}"

    def add(self, client: int, request: Sequence[Buffer], delivered: Sequence[int] = ()) -> str:
        # EngineCoreRequest and SamplingParams as vLLM encodes them: an array without, a map without its defaults.
        try:
            request_id, prompt, _, params, *_ = msgspec.msgpack.decode(request[0])
            tokens = [*prompt, *delivered]
            most = min(self.capacity.max_model_len, self.capacity.kv_tokens)
            left = min(params.get("max_tokens", 16) - len(delivered), most - len(tokens))
            stream = _Stream(
                client,
                tokens,
                left,
                params.get("min_tokens", 0) - len(delivered),
                params.get("stop_token_ids", ()),
                self._seed,
            )
        except (msgspec.DecodeError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise RequestRejected("", f"not a request for tokens: {error}") from error
        try:
            simulated = SimulatedRequest(request_id, len(tokens), left, _chain(tokens, self.capacity.block_tokens))
            self._engine.add(simulated, time.monotonic())
        except ValueError as error:
            raise RequestRejected(request_id, str(error)) from error
        self._streams[request_id] = stream
        return str(request_id)

    def abort(self, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            if self._streams.pop(request_id, None) is not None:
                self._engine.abort(request_id, time.monotonic())

    def has_work(self) -> bool:
        return self._engine.has_work

    def step(self) -> list[StepOutput]:
        engine = self._engine
        engine.begin(time.monotonic())
        if engine.due == math.inf:
            return []
        sampled = engine.decoding()
        time.sleep(max(engine.due - time.monotonic(), 0.0))
        sampled += engine.end().prefilled
        rows: dict[int, list[Any]] = {}
        finished: dict[int, list[str]] = {}
        for request_id in [request.request_id for request in sampled]:
            stream = self._streams[request_id]
            token, reason = stream.go_on()
            if reason is not None:
                del self._streams[request_id]
                engine.abort(request_id, time.monotonic())  # a stop token; the engine has ended the others itself
                finished.setdefault(stream.client, []).append(request_id)
            # EngineCoreOutput, up to its finish_reason
            rows.setdefault(stream.client, []).append([request_id, [token], None, None, None, reason])
        return [
            # EngineCoreOutputs, up to its timestamp
            StepOutput(
                client, [msgspec.msgpack.encode([0, of_client, None, time.monotonic()])], finished.get(client, [])
            )
            for client, of_client in rows.items()
        ]

    def load(self) -> CoreLoad:
        running, waiting, kv_used, work = self._engine.load(time.monotonic())
        return CoreLoad(running, waiting, kv_used, work)

    def placement(self) -> tuple[()]:
        return ()

    def routed_tokens(self) -> None:
        """It has no experts."""

    def reload(self, directory: str, expected: str = "") -> str:
        """Its version is the directory's name, as in a store; what is in there is not read."""
        if self.has_work():
            raise RuntimeError("weights cannot be reloaded under running requests")
        if not Path(directory).is_dir():
            raise ReloadFailed(f"there is no directory {directory}", touched=False)
        model, version = self._started_with
        self._serve_version(version if directory == model else Path(directory).name)
        self._engine.kv.clear()
        if expected and self.checksum != expected:
            raise ReloadFailed(f"the loaded weights have the checksum {self.checksum}, not {expected}", touched=True)
        return self.checksum

    def probe(self, probes: Sequence[Probe]) -> list[Probed]:
        """No stop token ends them. They take no time: what they would take is nothing beside a reload."""
        made = []
        for probe in probes:
            stream = _Stream(0, probe.prompt, probe.max_tokens, 0, (), self._seed)
            made.append(Probed(tuple([stream.go_on()[0] for _ in range(probe.max_tokens)]), ()))
        return made

    def shutdown(self) -> None:
        """Nothing to free."""
