"""The real engine core: vLLM 0.32's `EngineCore`, driven by our loop instead of its ZMQ process.

One of the four files that know vLLM's engine (v1/engine/core.py). What `EngineCoreProc` does around `EngineCore` in
vLLM (sockets, handshakes, busy loop) is `replicas.core_host` here; what happens inside a step is vLLM's own.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experts.placement import ShardPlacement
from experts.vllm_plugin import (
    count_routed_tokens,
    expert_placement,
    reload_weights,
    routed_tokens,
    stop_counting_routed_tokens,
    weight_digests,
)
from experts.weight_files import BadWeights, Checkpoint
from experts.worker_processes import fork_workers
from replicas.core import CoreLoad, Probed, ReloadFailed, RequestRejected, StepOutput
from replicas.engine_spec import EngineSpec
from replicas.messages import Capacity, Probe, Work
from replicas.seeded_noise import positioned_noise
from replicas.wire import Buffer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from vllm.engine.arg_utils import AsyncEngineArgs

_DELIVERED = "moray_delivered"  # in a request's extra_args, on its way from scheduler to worker: output token ids
# Tokens of a step by which vLLM's tables (model_executor/layers/fused_moe/configs) choose a tile of their kernel.
_TILE_TOKENS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 1536, 2048, 3072, 4096)
_BLOCK_HASH_BITS = (1 << 63) - 1  # of vLLM's hash: what fits a signed integer of msgpack's readers


class UnknownEngineArgument(ValueError):
    """An `engine.extra` name that vLLM does not know."""


def engine_args(spec: EngineSpec) -> "AsyncEngineArgs":
    """vLLM's arguments for this spec, for replica and gateway alike. UnknownEngineArgument comes with a suggestion."""
    import difflib

    from vllm.engine.arg_utils import AsyncEngineArgs

    known = [field.name for field in dataclasses.fields(AsyncEngineArgs)]
    for name in spec.engine_args:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UnknownEngineArgument(
                f"engine.extra: vLLM has no engine argument {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
            )
    return AsyncEngineArgs(**spec.engine_args)


def preload(spec: EngineSpec) -> None:
    """Imports what building a core takes longest for, in a process whose environment is the core's already.

    On CUDA not the worker: nothing may touch a GPU before the process knows its own, nor before it forks workers. The
    rest does not: vLLM's front end imports it and forks its engine.
    """
    importlib.import_module("vllm.engine.arg_utils")
    importlib.import_module("vllm.v1.engine.core")
    if spec.device == "cpu":
        importlib.import_module("vllm.v1.worker.cpu_worker")


def greedy_request(request_id: str, prompt_token_ids: Sequence[int], output_tokens: int) -> Sequence[Buffer]:
    """An encoded request for exactly `output_tokens` greedy tokens: what benches and tests feed a core directly."""
    from vllm.sampling_params import SamplingParams
    from vllm.v1.serial_utils import MsgpackEncoder

    params = SamplingParams(temperature=0, max_tokens=output_tokens, ignore_eos=True)
    return [bytes(buffer) for buffer in MsgpackEncoder().encode(_request(request_id, prompt_token_ids, params))]


def made_tokens(frame: Sequence[Buffer]) -> list[tuple[str, int]]:
    """What a step's frame holds, for whoever drives a core directly: request ids, and how many tokens each got."""
    outputs = _frames().decode(frame).outputs
    return [(output.request_id, len(output.new_token_ids)) for output in outputs]


@functools.cache
def _frames() -> Any:
    from vllm.v1.engine import EngineCoreOutputs
    from vllm.v1.serial_utils import MsgpackDecoder

    return MsgpackDecoder(EngineCoreOutputs)


def _request(request_id: str, prompt_token_ids: Sequence[int], params: Any) -> Any:
    from vllm.v1.engine import EngineCoreRequest

    return EngineCoreRequest(
        request_id=request_id,
        prompt_token_ids=list(prompt_token_ids),
        mm_features=None,
        sampling_params=params,
        pooling_params=None,
        arrival_time=time.time(),
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )


@contextlib.contextmanager
def _temporary_files() -> Iterator[None]:
    """Removes the file by which vLLM's ranks find each other, once they have (vllm/utils/network_utils.py)."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="moray-core-") as directory:
        tempfile.tempdir = directory
        try:
            yield
        finally:
            tempfile.tempdir = before


# -- resumed requests -------------------------------------------------------------------------------------------------


def begin_with_output(worker: Any) -> None:
    """Lets this worker's V1 model runner begin a request that has output already; run it on all workers.

    vLLM's scheduler takes a request with output tokens as it is, its V2 runner too (the whole is its
    `NewRequestData.prefill_token_ids`). The V1 runner (on a CPU, where there is no Triton) has that for preempted
    requests only: a new one starts with an empty output. Here it starts with what `VllmCore.add` put into its
    extra_args, and all that looks at the output (penalties, min_tokens, bad words, the prefill's length) is as if it
    had made those tokens itself.
    """
    from vllm.v1.worker.gpu_input_batch import CachedRequestState

    original = CachedRequestState.__post_init__
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def with_output(state: Any) -> None:
        original(state)
        params = state.sampling_params
        if params is not None and params.extra_args and (delivered := params.extra_args.get(_DELIVERED)):
            state.output_token_ids.extend(delivered)
        if state.generator is not None and state.generator.device.type == "cpu":
            state.generator = positioned_noise(params.seed, state.output_token_ids)

    CachedRequestState.__post_init__ = with_output


def compile_kernels(worker: Any) -> None:
    """Runs steps of all kinds of sizes without any request; on all workers at once, before the first request comes.

    vLLM's fused-MoE kernel is compiled when a step first needs one of its variants, seconds apiece in which no stream
    gets a token. Which one depends on a step's tokens: the tile by a table, and whether their number is odd. The steps
    are run without CUDA graphs, whose sizes are even: what is padded to one brings no kernel for an odd number, which
    an engine with fewer graphs needs (`VllmCore.limit`). What is compiled is kept on disk.
    """
    knobs = importlib.import_module("triton").knobs
    runner, most = worker.model_runner, worker.scheduler_config.max_num_batched_tokens
    began = time.monotonic()
    with knobs.runtime.scope():
        knobs.runtime.jit_post_compile_hook = None  # vLLM's, which warns of latency
        use_graphs(worker, 0)
        for tokens in sorted({n for tile in (*_TILE_TOKENS, most - 1) for n in (tile, tile + 1) if n <= most}):
            runner._dummy_run(tokens, skip_eplb=True)
        use_graphs(worker, sys.maxsize)
    logging.getLogger("vllm").info(
        "Steps of all sizes ran in %.1f s: their kernels are compiled.", time.monotonic() - began
    )


def use_graphs(worker: Any, most_tokens: int) -> None:
    """Of the CUDA graphs that this worker has captured, only those of steps of at most so many tokens; on all workers.

    vLLM's V2 runner looks a step's graph up by its tokens (v1/worker/gpu/cudagraph_utils.py), the V1 runner asks first
    whether they are too many (v1/cudagraph_dispatcher.py). FlashAttention splits what steps up to the largest graph
    attend to otherwise than larger steps do (v1/attention/backends/flash_attn.py).
    """
    for group in (group for groups in worker.model_runner.attn_groups for group in groups):
        for builder in group.metadata_builders:
            if (largest := getattr(builder, "max_cudagraph_size", None)) is not None:
                builder.max_cudagraph_size = min(most_tokens, vars(builder).setdefault("moray_largest", largest))
    if manager := getattr(worker.model_runner, "cudagraph_manager", None):
        captured = vars(manager).setdefault("moray_captured", manager._candidates)
        manager._candidates = {step: graphs for step, graphs in captured.items() if step[0] <= most_tokens}
        return
    dispatcher = worker.model_runner.cudagraph_dispatcher
    config = dispatcher.compilation_config
    if (largest := vars(dispatcher).setdefault("moray_largest", config.max_cudagraph_capture_size)) is not None:
        config.max_cudagraph_capture_size = min(most_tokens, largest)


def prompt_blocks(config: Any) -> "Callable[[Any, int], tuple[int, ...]]":
    """How a gateway names the full KV blocks of an EngineCoreRequest's prompt, given a block's size in tokens.

    By vLLM's own hashes, so that they are those of the cores' KV events. Without a prefix cache there are none, and
    none that two processes agree on if the algorithm is not cryptographic: its seed is then each process's own.
    """
    from vllm.utils.hashing import get_hash_fn_by_name
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.request import Request

    cache = config.cache_config
    agreed = cache.prefix_caching_hash_algo.startswith("sha256") or "PYTHONHASHSEED" in os.environ
    if not cache.enable_prefix_caching or not agreed:
        return lambda request, block_tokens: ()
    hash_function = get_hash_fn_by_name(cache.prefix_caching_hash_algo)
    init_none_hash(hash_function)
    hashers = functools.cache(lambda block_tokens: get_request_block_hasher(block_tokens, hash_function))

    def blocks(request: Any, block_tokens: int) -> tuple[int, ...]:
        hashed = Request.from_engine_core_request(request, hashers(block_tokens)).block_hashes
        return tuple([_short_hash(block_hash) for block_hash in hashed])

    return blocks


def _short_hash(block_hash: bytes | int) -> int:
    if isinstance(block_hash, bytes):
        block_hash = int.from_bytes(block_hash[-8:], "big")
    return block_hash & _BLOCK_HASH_BITS


class _KvEvents:
    """Stands where vLLM's scheduler has a publisher of KV events (vllm/distributed/kv_events.py), without a socket."""

    def __init__(self) -> None:
        self._changed: dict[int, bool] = {}  # block -> whether it is there now

    def publish(self, batch: Any) -> None:
        from vllm.distributed.kv_events import BlockRemoved, BlockStored  # all blocks are cleared by `reload` only

        for event in batch.events:
            if isinstance(event, BlockStored | BlockRemoved) and not event.group_idx:  # other groups: the same blocks
                there = isinstance(event, BlockStored)
                self._changed.update((_short_hash(block_hash), there) for block_hash in event.block_hashes)

    def take(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Blocks that appeared and that went since the last call."""
        changed, self._changed = self._changed, {}
        stored, removed = (tuple([b for b, now in changed.items() if now is there]) for there in (True, False))
        return stored, removed

    def shutdown(self) -> None: ...


class VllmCore:
    """`replicas.core.EngineCore` on vLLM. Not thread-safe: build and use it in one thread."""

    def __init__(self, spec: EngineSpec) -> None:
        args = engine_args(spec)
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine import EngineCoreRequest
        from vllm.v1.engine.core import EngineCore
        from vllm.v1.executor import Executor
        from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

        # Its limits of a step depend on what an engine is for: without this an H200 would get 2,048 tokens, not 8,192.
        config = args.create_engine_config(UsageContext.OPENAI_API_SERVER)
        if spec.device == "cpu" and spec.shards > 1:
            fork_workers()  # after create_engine_config, which on a CPU sets vLLM's start method back to spawn
        # log_stats=False: what it computes each step, the load reports give when they are due.
        with _temporary_files():
            executor = Executor.get_class(config)
            self._core = EngineCore(config, executor, log_stats=False, executor_fail_callback=self._fail)
        if spec.device == "cuda" and config.model_config.is_moe and config.parallel_config.data_parallel_size == 1:
            self._core.collective_rpc(compile_kernels)
        self._encoder = MsgpackEncoder()
        self._decoder = MsgpackDecoder(EngineCoreRequest)
        self._executor_failed = False
        self._delivered_by_extra_args = not self._core.scheduler.use_v2_model_runner
        if self._delivered_by_extra_args:
            self._core.collective_rpc(begin_with_output)
        self._steps, self._step_s, self._prefill_tokens, self._decode_tokens = 0, 0.0, 0, 0
        self._prefix_queries, self._prefix_hits = 0, 0
        self._schedule = self._core.scheduler.schedule
        self._core.scheduler.schedule = self._counted_schedule
        self._kv_events = _KvEvents()
        self._core.scheduler.kv_event_publisher = self._kv_events
        pool = self._core.scheduler.kv_cache_manager.block_pool
        self._caches_prefixes = pool.enable_kv_cache_events = config.cache_config.enable_prefix_caching
        self.moves_experts = config.parallel_config.enable_eplb
        self._directory = str(config.model_config.model)  # whose weights it serves
        self._reloads = False  # it was seen that a reload gives what the first load gave
        try:
            self._checkpoint: Checkpoint | None = Checkpoint.of(Path(self._directory))
        except BadWeights:
            self._checkpoint = None  # to vLLM they may be weights all the same
        # Of 57 GiB it takes half a minute, so not where no other version can come. Now, before an expert is moved.
        self.checksum = self._digest() if spec.version else ""
        cache, scheduler = config.cache_config, config.scheduler_config
        self.capacity = Capacity(
            kv_tokens=(cache.num_gpu_blocks - 1) * cache.block_size,  # block 0 is vLLM's null block
            block_tokens=cache.block_size,
            max_num_seqs=scheduler.max_num_seqs,
            max_num_batched_tokens=scheduler.max_num_batched_tokens,
            max_model_len=config.model_config.max_model_len,
        )

    def _fail(self) -> None:
        """vLLM's executor calls this, from a thread of its own, when a worker process died."""
        self._executor_failed = True

    def add(self, client: int, request: Sequence[Buffer], delivered: Sequence[int] = ()) -> str:
        request_id = ""
        try:
            decoded = self._decoder.decode(request)
            request_id, decoded.client_index = str(decoded.request_id), client
            params = decoded.sampling_params
            if params.extra_args and _DELIVERED in params.extra_args:  # a client may send any
                params.extra_args = {k: v for k, v in params.extra_args.items() if k != _DELIVERED}
            if delivered:
                params.prompt_logprobs = None  # they came with its first token
            if delivered and self._delivered_by_extra_args:
                params.extra_args = (params.extra_args or {}) | {_DELIVERED: list(delivered)}
            made, wave = self._core.preprocess_add_request(decoded)
            if delivered:
                self._put_in(made, list(delivered))
            self._core.add_request(made, wave)
        except Exception as error:
            raise RequestRejected(request_id, f"{type(error).__name__}: {error}") from error
        return request_id

    def _put_in(self, request: Any, delivered: list[int]) -> None:
        """Gives a request the output that it had elsewhere, before the scheduler sees it."""
        request.append_output_token_ids(delivered)
        request.prefill_stats = None  # told with its first token; and output may now be cached, which they deny
        if not request.use_structured_output:
            return
        manager, guided = self._core.structured_output_manager, request.structured_output_request
        begins, _ = manager._get_constraint_bounds(request, delivered, spec_tokens_committed=True)
        if begins > len(delivered):
            return  # it is still thinking: nothing was guided yet
        guided.reasoning_ended = True
        compiled = guided._grammar

        def advanced(grammar: Any) -> Any:
            if not grammar.accept_tokens(request.request_id, delivered[begins:]):
                raise ValueError("the delivered tokens do not follow the request's grammar")
            return grammar

        if isinstance(compiled, Future):  # after the compilation, in the same queue
            guided.grammar = manager.executor.submit(lambda: advanced(compiled.result()))
        else:
            guided.grammar = advanced(compiled)

    def abort(self, request_ids: Sequence[str]) -> None:
        self._core.abort_requests(list(request_ids))

    def has_work(self) -> bool:
        # A dead executor is work: the next step finds out and says so.
        return self._core.scheduler.has_requests() or bool(self._core.batch_queue) or self._executor_failed

    def step(self) -> list[StepOutput]:
        began, steps = time.monotonic(), self._steps
        encoded = [self._encode(client, o) for client, o in self._step().items() if o.outputs]
        if self._steps > steps:
            self._step_s += time.monotonic() - began
        return encoded

    def _step(self) -> dict[int, Any]:
        """One step of vLLM's: EngineCoreOutputs by client."""
        if self._executor_failed:
            raise RuntimeError("a worker process of the engine died; see the replica's log")
        outputs, executed = self._core.step_fn()
        self._core.post_step(executed)
        self._steps += executed
        return outputs or {}

    def _counted_schedule(self, *args: Any) -> Any:
        """vLLM's `schedule`, counting what it lets be computed."""
        scheduled = self._schedule(*args)
        counts, cached = scheduled.num_scheduled_tokens, scheduled.scheduled_cached_reqs
        decoding = scheduled.total_num_scheduled_tokens
        if self._caches_prefixes:
            for new in scheduled.scheduled_new_reqs:
                self._prefix_queries += len(new.prompt_token_ids or ())
                self._prefix_hits += new.num_computed_tokens
        if scheduled.scheduled_new_reqs or decoding != len(counts):
            drafts = scheduled.scheduled_spec_decode_tokens
            pairs = zip(cached.req_ids, cached.num_output_tokens, strict=True)
            decoding = sum(counts[r] for r, output in pairs if output and (counts[r] == 1 or r in drafts))
        self._decode_tokens += decoding
        self._prefill_tokens += scheduled.total_num_scheduled_tokens - decoding
        return scheduled

    def _encode(self, client: int, outputs: Any) -> StepOutput:
        finished = [o.request_id for o in outputs.outputs if o.finish_reason is not None]
        outputs.finished_requests = None
        return StepOutput(client, self._encoder.encode(outputs), finished)

    def load(self) -> CoreLoad:
        running, waiting = self._core.scheduler.get_request_counts()
        stored, removed = self._kv_events.take()
        work = Work(
            steps=self._steps,
            step_s=self._step_s,
            prefill_tokens=self._prefill_tokens,
            decode_tokens=self._decode_tokens,
            prefix_query_tokens=self._prefix_queries,
            prefix_hit_tokens=self._prefix_hits,
        )
        return CoreLoad(running, waiting, self._core.scheduler.get_kv_cache_usage(), work, stored, removed)

    def placement(self) -> tuple[ShardPlacement, ...]:
        return tuple(self._core.collective_rpc(expert_placement))

    def routed_tokens(self) -> "NDArray[np.int64] | None":
        told = self._core.collective_rpc(routed_tokens)
        return next((counts for counts in told if counts is not None), None)

    def count_routed_tokens(self, on: bool) -> None:
        """For benches: replicas count from the start, and go on."""
        self._core.collective_rpc(count_routed_tokens if on else stop_counting_routed_tokens)

    def limit(self, batched_tokens: int, seqs: int, prompt_chunk: int, graph_tokens: int = 0) -> None:
        """For benches: other limits of a step, while nothing runs. ValueError: above those that it was loaded with.

        `prompt_chunk`: tokens of one prompt in a step beside other requests; 0: as many as fit. `graph_tokens`: of the
        largest step that runs as a CUDA graph; 0: as it is.
        """
        if batched_tokens > self.capacity.max_num_batched_tokens or seqs > self.capacity.max_num_seqs:
            raise ValueError(f"{batched_tokens} tokens or {seqs} sequences are more than the engine was loaded with")
        scheduler = self._core.scheduler
        scheduler.max_num_scheduled_tokens, scheduler.max_num_active_reqs = batched_tokens, seqs
        scheduler.scheduler_config.long_prefill_token_threshold = prompt_chunk
        if graph_tokens:
            self._core.collective_rpc(use_graphs, args=(graph_tokens,))

    # -- other weights ------------------------------------------------------------------------------------------------

    def reload(self, directory: str, expected: str = "") -> str:
        if self.has_work():
            raise RuntimeError("weights cannot be reloaded under running requests")
        if why_not := self._refuses(directory):
            raise ReloadFailed(why_not, touched=False)
        if not (self._reloads or expected):
            self._prove_reload()
        found = self._load(directory)
        if expected and found != expected:
            raise ReloadFailed(f"the loaded weights have the checksum {found}, not {expected}", touched=True)
        self._reloads = True
        return found

    def _refuses(self, directory: str) -> str:
        from vllm.model_executor.model_loader import get_model_loader

        load_config = self._core.vllm_config.load_config
        if self._checkpoint is None or not hasattr(get_model_loader(load_config), "get_all_weights"):
            return (
                f"vLLM can reload .safetensors files only; it loaded {self._directory} as {load_config.load_format!r}"
            )
        return self._checkpoint.refuses(Path(directory))

    def _prove_reload(self) -> None:
        """Loads once more what it has. vLLM brings weights into the kernels' own layouts by other ways when it reloads
        them, and not all kernels' are right (see `vllm_plugin.reload_weights`): such a one would answer nonsense.
        """
        first = self.checksum or self._digest()
        if (again := self._load(self._directory)) != first:
            raise ReloadFailed(
                f"vLLM reloads this model's weights otherwise than it loads them (checksum {again} after {first}): "
                "other versions need replicas that start with them, as the rollout strategy surge has it",
                touched=True,
            )

    def _load(self, directory: str) -> str:
        self.checksum = ""
        if failed := [why for why in self._core.collective_rpc(reload_weights, args=(directory,)) if why]:
            raise ReloadFailed(failed[0], touched=True)
        self._core._reset_caches(reset_running_requests=False)
        self._core.scheduler.kv_cache_manager.take_events()
        self._kv_events.take()
        self._directory, self.checksum = directory, self._digest()
        return self.checksum

    def _digest(self) -> str:
        """Over all shards. The tensors' names have their ranks."""
        digests = [sorted(of_worker.items()) for of_worker in self._core.collective_rpc(weight_digests)]
        return hashlib.sha256(repr(sorted(digests)).encode()).hexdigest()

    def probe(self, probes: Sequence[Probe]) -> list[Probed]:
        from vllm.sampling_params import SamplingParams
        from vllm.v1.engine import FinishReason

        config = self._core.vllm_config.model_config
        ends = (config.try_get_generation_config() or {}).get("eos_token_id", config.hf_config.eos_token_id)
        stops = [ends] if isinstance(ends, int) else list(ends or ())
        tokens: list[list[int]] = [[] for _ in probes]
        logprobs: list[tuple[float, ...]] = [() for _ in probes]
        for number, probe in enumerate(probes):
            if not 0 < len(probe.prompt) < config.max_model_len:
                continue  # it has no answer here
            params = SamplingParams(
                temperature=0.0,
                max_tokens=min(probe.max_tokens, config.max_model_len - len(probe.prompt)),
                stop_token_ids=stops,
                prompt_logprobs=0 if probe.logprobs else None,
            )
            request = _request(str(number), probe.prompt, params)
            self._core.add_request(*self._core.preprocess_add_request(request))
        while self.has_work():
            outputs = [output for of_client in self._step().values() for output in of_client.outputs]
            for output in outputs:
                made = tokens[number := int(output.request_id)]
                made += output.new_token_ids
                if output.finish_reason is FinishReason.STOP and made and made[-1] in stops:
                    made.pop()
                if output.new_prompt_logprobs_tensors is not None:
                    logprobs[number] = tuple(output.new_prompt_logprobs_tensors.logprobs[:, 0].tolist())
        return [Probed(tuple(made), of_prompt) for made, of_prompt in zip(tokens, logprobs, strict=True)]

    def shutdown(self) -> None:
        """Nothing: this process ends next, and its workers with it. vLLM's own takes 3-8 s to free what that frees."""
