"""VllmCores in processes of their own that load one checkpoint after another. Not a test; started by `replies`.

Reads jobs as JSON from stdin, imports vLLM once, forks for each job, and writes what came of it as a JSON line. Job:
model, version, shards, plan (file of an expert plan), acts: a list of [what, argument], done in turn:
    ["reload", directory]      through `VllmCore.reload`
    ["force", directory]       past its look at the files, as if they had been sound
    ["probe", probes]
Each act's reply: checksum, failed (why not; null: it did), touched, tokens and counted (what the core answers to
PROMPTS then, and what that gave each expert; null: it cannot), stored (KV blocks that it told of), placement.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PROMPTS = [[40 + (7 * i * k) % 60 for i in range(k)] for k in (*range(20, 35), 300)]  # the last fills KV blocks
TOKENS = 16


def answers(core: Any) -> list[list[int]]:
    """Greedy tokens for each prompt, all in one batch."""
    import msgspec

    from replicas.vllm_core import greedy_request

    made: dict[str, list[int]] = {}
    for number, prompt in enumerate(PROMPTS):
        core.add(0, greedy_request(str(number), prompt, TOKENS))
    while core.has_work():
        for _, frame, _ in core.step():
            for request_id, tokens, *_ in msgspec.msgpack.decode(frame[0])[1]:
                made.setdefault(request_id, []).extend(tokens)
    return [made[str(number)] for number in range(len(PROMPTS))]


def act(core: Any, what: str, argument: Any) -> dict[str, Any]:
    import msgspec

    from replicas.core import ReloadFailed
    from replicas.messages import Probe

    told: dict[str, Any] = {"failed": None, "touched": False, "probed": None}
    try:
        if what == "reload":
            core.reload(argument)
        elif what == "force":
            core._load(argument)
        else:
            told["probed"] = core.probe(msgspec.convert(argument, tuple[Probe, ...]))
    except ReloadFailed as error:
        told |= {"failed": str(error), "touched": error.touched}
    return told | state(core, usable=not told["touched"])


def state(core: Any, usable: bool = True) -> dict[str, Any]:
    before = core.routed_tokens()
    return {
        "checksum": core.checksum,
        "tokens": answers(core) if usable else None,
        "counted": (core.routed_tokens() - before).tolist() if usable else None,
        "stored": list(core.load().stored) if usable else None,
        "placement": [list(shard.experts.values()) for shard in core.placement()],
    }


def run(job: dict[str, Any]) -> dict[str, Any]:
    from replicas.engine_host import core_environment
    from replicas.engine_spec import EngineSpec

    args: dict[str, Any] = {
        "model": job["model"],
        "dtype": "float32",
        "enforce_eager": True,
        "skip_tokenizer_init": True,
        "kv_cache_memory_bytes": 64 << 20,
        "max_model_len": 1024,
        "max_num_batched_tokens": 1024,
        "max_num_seqs": 32,
    }
    if (shards := job["shards"]) > 1:
        args |= {"tensor_parallel_size": shards, "enable_expert_parallel": True}
    spec = EngineSpec(
        model="m",
        version=job["version"],
        engine_args=args,
        host="process",
        device="cpu",
        shards=shards,
        listen=None,
        start_timeout_s=100.0,
        drain_s=0.0,
        expert_plan=job.get("plan"),
    )
    os.environ.update(core_environment(spec))
    from replicas.vllm_core import VllmCore

    core = VllmCore(spec)
    return {"start": state(core), "acts": [act(core, *each) for each in job["acts"]]}


def main() -> None:
    import vllm.v1.engine.core  # for the children
    import vllm.v1.executor  # noqa: F401

    reply = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM logs to stdout
    for job in json.load(sys.stdin):
        child = os.fork()
        if child == 0:
            reply.write(json.dumps(run(job)) + "\n")
            reply.flush()
            os._exit(0)  # no orderly shutdown: the kernel ends the workers
        if os.waitpid(child, 0)[1] != 0:
            sys.exit(f"The engine's process failed on {job['model']} with {job['shards']} shards.")


@contextmanager
def replies(jobs: list[dict[str, Any]]) -> Iterator[Iterator[dict[str, Any]]]:
    """One a job, in turn."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    process = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps(jobs))
        process.stdin.close()
        yield map(json.loads, process.stdout)
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
