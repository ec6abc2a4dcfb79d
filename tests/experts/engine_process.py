"""Engine cores for tests that shard experts: reads jobs from stdin, each a line of JSON, and answers each by a line.

Not a test. One process imports vLLM once (~10 s) and forks a child per job: every engine gets a fresh process without
threads, which is what forking its own workers needs.
"""

import json
import os
import sys
import time
import traceback
from typing import Any, TextIO

FAILED = 3  # an exit code: there was no engine, or it broke

# vLLM and OpenMP read these when they are imported.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "OMP_NUM_THREADS": "1",
    # The first request that asks for logprobs compiles a C++ kernel even with enforce_eager: 20 s with a cold cache.
    "TORCHDYNAMO_DISABLE": "1",
}


def engine_args(model: str, shards: int, expert_parallel: bool) -> dict[str, Any]:
    """Moray's CPU engine, in float32: in bfloat16 the order of a reduction shows in tokens after some 25."""
    args: dict[str, Any] = {
        "model": model,
        "dtype": "float32",
        "skip_tokenizer_init": True,
        "max_model_len": 1024,
        "enforce_eager": True,
        "kv_cache_memory_bytes": 64 << 20,
        "max_num_batched_tokens": 1024,
        "max_num_seqs": 64,
    }
    if shards > 1:
        args |= {
            "tensor_parallel_size": shards,
            "enable_expert_parallel": expert_parallel,
            "distributed_executor_backend": "mp",
        }
    return args


def damage(worker: Any, kind: str) -> None:
    """What sharding can get wrong, done on purpose. Goes to the workers by value: they do not import this file."""
    layers = moe_layers(worker)
    for layer in layers:
        whole = layer.expert_map_manager.expert_map
        layer._expert_map = whole.roll(len(whole) // 2) if kind == "rotated" else whole.clone()
    if kind == "lost":  # one expert of the deepest layer is on no shard
        layers[-1]._expert_map[1] = -1


def capture(worker: Any) -> None:
    """Has vLLM note every choice as it does for `enable_return_routed_experts`.

    That itself wants vLLM's V2 model runner, which has no CPU version: this is what fills a request's `routed_experts`.
    """
    import torch
    from vllm.model_executor.layers.fused_moe import routed_experts_capturer as vllm_capture

    made = vllm_capture.RoutedExpertsCapturer(max_num_batched_tokens=1024, vllm_config=worker.vllm_config)
    vllm_capture.bind_routed_experts_capturer(worker.get_model(), made)
    worker.chosen = torch.zeros(made.device_buffer.shape[1], 64, dtype=torch.int64)
    execute = worker.model_runner.execute_model

    def execute_and_note(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        result = execute(scheduled, *args, **kwargs)
        rows = made.snapshot_routing_data(scheduled.total_num_scheduled_tokens)
        for layer in range(rows.shape[1]):
            worker.chosen[layer] += torch.bincount(rows[:, layer].flatten().int(), minlength=64)
        return result

    worker.model_runner.execute_model = execute_and_note


def captured(worker: Any) -> list[list[int]]:
    """[layer][expert]."""
    return worker.chosen[:, : int(worker.chosen.sum(0).nonzero().max()) + 1].tolist()


def watch(worker: Any) -> None:
    """Counts from now on the choices that this shard's kernel is to compute, as the plugin hands them to it."""
    from experts import vllm_plugin

    handed = getattr(vllm_plugin.map_topk, "watches", vllm_plugin.map_topk)
    worker.computed = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        ids, weights = handed(*args, **kwargs)
        worker.computed.append(int((weights != 0).sum()))
        return ids, weights

    watched.watches = handed  # type: ignore[attr-defined]
    vllm_plugin.map_topk = watched


def load_anew(worker: Any, plan: str) -> None:
    """Has the worker load its model again, by another plan, as it did when it started: 0.3 s where a start takes 4."""
    from experts.vllm_plugin import EXPERT_PLAN, stop_counting_routed_tokens

    os.environ[EXPERT_PLAN] = plan
    runner, compilation = worker.model_runner, worker.vllm_config.compilation_config
    stop_counting_routed_tokens(worker)
    for built in (compilation.static_forward_context, compilation.static_all_moe_layers):
        built.clear()
    worker.load_model()
    for bound in (runner.attn_groups, runner.kv_caches):
        bound.clear()
    runner.initialize_kv_cache(runner.kv_cache_config)


def computed(worker: Any) -> list[int]:
    """By layer: the kernels are called in the model's order, once a step."""
    layers = len(moe_layers(worker))
    return [sum(worker.computed[layer::layers]) for layer in range(layers)]


def moe_layers(worker: Any) -> list[Any]:
    return [module for module in worker.get_model().modules() if "expert_map_manager" in vars(module)]


def generate(core: Any, prompts: list[list[int]], max_tokens: int) -> dict[str, Any]:
    """Greedy tokens and their log probabilities, prompt by prompt."""
    from vllm import SamplingParams
    from vllm.v1.engine import EngineCoreRequest

    answers: dict[str, tuple[list[int], list[float]]] = {}
    for index, prompt in enumerate(prompts):
        params = SamplingParams(temperature=0, max_tokens=max_tokens, logprobs=0, ignore_eos=True)
        answers[str(index)] = ([], [])
        core.add_request(
            *core.preprocess_add_request(
                EngineCoreRequest(
                    request_id=str(index),
                    prompt_token_ids=prompt,
                    mm_features=None,
                    sampling_params=params,
                    pooling_params=None,
                    arrival_time=time.time(),
                    lora_request=None,
                    cache_salt=None,
                    data_parallel_rank=None,
                )
            )
        )
    while core.scheduler.has_requests():
        outputs, executed = core.step_fn()
        core.post_step(model_executed=executed)
        for batch in (outputs or {}).values():
            for output in batch.outputs:
                tokens, logprobs = answers[output.request_id]
                tokens.extend(output.new_token_ids)
                if output.new_logprobs is not None:
                    logprobs.extend(float(row[0]) for row in output.new_logprobs.logprobs)
    return {
        "tokens": [answers[str(i)][0] for i in range(len(prompts))],
        "logprobs": [answers[str(i)][1] for i in range(len(prompts))],
    }


def measured(core: Any, job: dict[str, Any]) -> dict[str, Any]:
    """The job's prompts through an engine that has not answered yet."""
    from experts.vllm_plugin import routed_tokens

    prompts = job.get("prompts", [[1]])
    generate(core, prompts[:1], 1)
    before = core.collective_rpc(routed_tokens)[0]
    if job.get("capture"):
        core.collective_rpc(capture)
    if "plan" in job:
        core.collective_rpc(watch)
    whole = generate(core, prompts, job.get("max_tokens", 1))
    counted = [None if counts is None else (counts - before).tolist() for counts in core.collective_rpc(routed_tokens)]
    return {
        "runs": {"whole": whole},
        "counted": counted,
        "captured": core.collective_rpc(captured)[0] if job.get("capture") else None,
        "computed": core.collective_rpc(computed) if "plan" in job else None,
    }


def placed(core: Any) -> list[dict[str, Any]]:
    from experts.vllm_plugin import expert_placement

    shards = core.collective_rpc(expert_placement)
    return [{name: getattr(shard, name) for name in shard.__struct_fields__} for shard in shards]


def run(job: dict[str, Any], reply: TextIO) -> None:
    """One engine, from its configuration to its answers.

    Job: model, shards, expert_parallel (default; else each expert is split over them), fork (default; else spawn),
    prompts, max_tokens, damages (one more run for each), hold (seconds, at the end), plan (file of an expert plan),
    then (files of plans by which the same engine loads its model afterwards), capture (count by vLLM's own means, too).
    The answer: what `result` below holds, or {"failed": true}; why is on stderr.
    """
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.executor import Executor

    from experts.placement import omp_binding
    from experts.vllm_plugin import EXPERT_PLAN, OF_A_REPLICA
    from experts.worker_processes import fork_workers

    shards = job["shards"]
    cpus = sorted(os.sched_getaffinity(0))
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = omp_binding(shards, cpus) if shards > 1 else "nobind"
    os.environ |= {OF_A_REPLICA: "1", EXPERT_PLAN: job.get("plan", "")}
    config = EngineArgs(**engine_args(job["model"], shards, job.get("expert_parallel", True))).create_engine_config()
    if shards > 1 and job.get("fork", True):
        fork_workers()
    core = EngineCore(config, Executor.get_class(config), log_stats=False)
    result = measured(core, job)
    for kind in job.get("damages", []):
        core.collective_rpc(damage, args=(kind,))
        core.reset_prefix_cache()
        result["runs"][kind] = generate(core, job["prompts"], job["max_tokens"])
    result |= {
        "placement": placed(core),  # after the last damage
        "pid": os.getpid(),
        "then": [],
    }
    for plan in job.get("then", []):
        core.collective_rpc(load_anew, args=(plan,))
        core.reset_prefix_cache()
        result["then"].append(measured(core, job) | {"placement": placed(core)})
    reply.write(json.dumps(result) + "\n")
    reply.flush()
    time.sleep(job.get("hold", 0.0))


def main() -> None:
    import vllm.v1.engine.core  # for the children
    import vllm.v1.executor  # noqa: F401

    reply = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM logs to stdout
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            # No orderly shutdown (vLLM's takes 3-7 s): the kernel ends the workers.
            try:
                run(json.loads(line), reply)
            except BaseException:
                traceback.print_exc()
                os._exit(FAILED)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == FAILED:
            reply.write(json.dumps({"failed": True}) + "\n")
            reply.flush()


if __name__ == "__main__":
    main()
