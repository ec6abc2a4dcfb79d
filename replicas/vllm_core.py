"""The real engine core: vLLM 0.32's `EngineCore`, driven by our loop instead of its ZMQ process.

One of the four files that know vLLM's engine (v1/engine/core.py). What `EngineCoreProc` does around `EngineCore` in
vLLM (sockets, handshakes, busy loop) is `replicas.core_host` here; what happens inside a step is vLLM's own.
"""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from experts.placement import ShardPlacement
from experts.vllm_plugin import expert_placement, fork_workers
from replicas.core import CoreLoad, RequestRejected, StepOutput
from replicas.engine_spec import EngineSpec
from replicas.messages import Capacity
from replicas.wire import Buffer

if TYPE_CHECKING:
    from vllm.engine.arg_utils import AsyncEngineArgs


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


def greedy_request(request_id: str, prompt_token_ids: Sequence[int], output_tokens: int) -> Sequence[Buffer]:
    """An encoded request for exactly `output_tokens` greedy tokens: what benches and probes feed a core directly."""
    import time

    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.serial_utils import MsgpackEncoder

    request = EngineCoreRequest(
        request_id=request_id,
        prompt_token_ids=list(prompt_token_ids),
        mm_features=None,
        sampling_params=SamplingParams(temperature=0, max_tokens=output_tokens, ignore_eos=True),
        pooling_params=None,
        arrival_time=time.time(),
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
    return [bytes(buffer) for buffer in MsgpackEncoder().encode(request)]


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


class VllmCore:
    """`replicas.core.EngineCore` on vLLM. Not thread-safe: build and use it in one thread."""

    def __init__(self, spec: EngineSpec) -> None:
        args = engine_args(spec)
        from vllm.v1.engine import EngineCoreRequest
        from vllm.v1.engine.core import EngineCore
        from vllm.v1.executor import Executor
        from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

        config = args.create_engine_config()
        if spec.device == "cpu" and spec.shards > 1:
            fork_workers()  # after create_engine_config, which on a CPU sets vLLM's start method back to spawn
        # log_stats=False: what it computes each step, the load reports give when they are due.
        with _temporary_files():
            executor = Executor.get_class(config)
            self._core = EngineCore(config, executor, log_stats=False, executor_fail_callback=self._fail)
        self._encoder = MsgpackEncoder()
        self._decoder = MsgpackDecoder(EngineCoreRequest)
        self._executor_failed = False
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

    def add(self, client: int, request: Sequence[Buffer]) -> str:
        request_id = ""
        try:
            decoded = self._decoder.decode(request)
            request_id, decoded.client_index = str(decoded.request_id), client
            self._core.add_request(*self._core.preprocess_add_request(decoded))
        except Exception as error:
            raise RequestRejected(request_id, f"{type(error).__name__}: {error}") from error
        return request_id

    def abort(self, request_ids: Sequence[str]) -> None:
        self._core.abort_requests(list(request_ids))

    def has_work(self) -> bool:
        # A dead executor is work: the next step finds out and says so.
        return self._core.scheduler.has_requests() or bool(self._core.batch_queue) or self._executor_failed

    def step(self) -> list[StepOutput]:
        if self._executor_failed:
            raise RuntimeError("a worker process of the engine died; see the replica's log")
        outputs, executed = self._core.step_fn()
        self._core.post_step(executed)
        return [self._encode(client, o) for client, o in (outputs or {}).items() if o.outputs]

    def _encode(self, client: int, outputs: Any) -> StepOutput:
        finished = [o.request_id for o in outputs.outputs if o.finish_reason is not None]
        outputs.finished_requests = None
        return StepOutput(client, self._encoder.encode(outputs), finished)

    def load(self) -> CoreLoad:
        running, waiting = self._core.scheduler.get_request_counts()
        return CoreLoad(running, waiting, self._core.scheduler.get_kv_cache_usage())

    def placement(self) -> tuple[ShardPlacement, ...]:
        return tuple(self._core.collective_rpc(expert_placement))

    def shutdown(self) -> None:
        """Nothing: this process ends next, and its workers with it. vLLM's own takes 3-8 s to free what that frees."""
