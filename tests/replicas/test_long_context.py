"""A 32K prompt on the real engine, on the embedded model's architecture: chunked prefill, rope scaling, KV memory.

Its positions are stretched by YaRN from 4,096 to 32,768 (`hf_overrides`, as `replicas.model_directory` proposes it), in
float32, so that what differs is more than the order of sums. Each engine is a process of its own.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from experts.model_spec import from_config
from experts.tiny_r1 import checkpoint_path
from replicas.engine_spec import EngineSpec
from replicas.model_directory import check_context, stretched

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

CONTEXT, OUTPUT, CHUNK = 32_768, 8, 2_048
BLOCK_TOKENS = 128  # of vLLM's KV cache on a CPU
CHECKPOINT = Path(checkpoint_path())
CONFIG = json.loads((CHECKPOINT / "config.json").read_text())
YARN = stretched(CONFIG, CONTEXT)
KV_BYTES_PER_TOKEN = int(from_config(CONFIG, "tiny-r1").kv_bytes_per_token(value_bytes=4.0))
PLANNED = (CONTEXT + BLOCK_TOKENS) * KV_BYTES_PER_TOKEN  # vLLM keeps one block for itself


@pytest.fixture(scope="module")
def start():
    """`start(prompts, …)`: what an engine with these arguments makes of the prompts. See engine_answers.py."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("engine_answers.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )

    def answered(*args, **engine_args):
        process.stdin.write(json.dumps(job(*args, **engine_args)) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        assert answer, "the engine's process failed; its last words are on stderr"
        return json.loads(answer)

    yield answered
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def job(prompts=(), overrides=YARN, beside=False, **engine_args):
    spec = EngineSpec(
        model="tiny-r1",
        engine_args={
            "model": str(CHECKPOINT),
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": CONTEXT,
            "kv_cache_memory_bytes": PLANNED,
            "max_num_seqs": 8,
            "max_num_batched_tokens": CHUNK,
            "hf_overrides": overrides,
        }
        | engine_args,
        host="process",
        device="cpu",
        shards=1,
        listen=None,
        start_timeout_s=100.0,
        drain_s=0.0,
    )
    return {
        "spec": msgspec.to_builtins(spec),
        "prompts": prompts,
        "output_tokens": OUTPUT,
        "beside": beside,
        "refuse": [65] * (CONTEXT + 1),
    }


def babble(count, seed=0):
    return [40 + (i * i + 7 * i + seed * (i + 3)) % 60 for i in range(count)]


LONG = babble(CONTEXT - OUTPUT)
OTHER_BEGINNING = babble(CHUNK, seed=11) + LONG[CHUNK:]


@pytest.fixture(scope="module")
def chunked(start):
    return start([LONG, OTHER_BEGINNING], enable_prefix_caching=False)


@pytest.fixture(scope="module")
def whole(start):
    """The same in one step."""
    return start([LONG], max_num_batched_tokens=CONTEXT)


def gap(one, other):
    return max(abs(a - b) for a, b in zip(one["logprobs"], other["logprobs"], strict=True))


def test_a_32k_prompt_is_answered_in_chunks_as_in_one_step(chunked, whole):
    in_chunks, at_once = chunked["answers"][0], whole["answers"][0]
    assert len(in_chunks["tokens"]) == OUTPUT and in_chunks["tokens"] == at_once["tokens"]
    assert gap(in_chunks, at_once) < 1e-3
    assert (in_chunks["steps"], at_once["steps"]) == (CONTEXT // CHUNK + OUTPUT - 1, OUTPUT)


def test_its_first_chunk_still_counts_at_its_end(chunked):
    assert gap(*chunked["answers"]) > 1e-3


def test_beside_a_stream_a_long_prompt_takes_no_more_of_a_step_than_a_profile_allows(start, chunked):
    """What the profiles' long_prefill_token_threshold is there for; alone, a prompt may fill the step."""
    prompt = LONG[: 4 * CHUNK]
    limited = start([prompt], beside=True, long_prefill_token_threshold=CHUNK // 4)
    assert limited["answers"][0]["first"] == 16
    assert chunked["answers"][0]["first"] == CONTEXT // CHUNK


def test_it_is_read_with_its_positions_scaled(start, chunked):
    unscaled = start([LONG], overrides={"max_position_embeddings": CONTEXT})
    assert gap(unscaled["answers"][0], chunked["answers"][0]) > 1e-3


def test_the_planned_kv_memory_holds_32768_tokens_and_a_block_less_is_refused(start, chunked):
    assert chunked["kv_tokens"] == CONTEXT
    failed = start(kv_cache_memory_bytes=PLANNED - BLOCK_TOKENS * KV_BYTES_PER_TOKEN)["failed"]
    assert "32768" in failed and "KV cache" in failed


def test_a_prompt_beyond_it_is_refused(chunked):
    assert f"maximum context length is {CONTEXT} tokens" in chunked["refused"]


def test_without_scaled_positions_the_engine_refuses_as_the_check_before_it_does(start):
    assert "max_model_len (32768) is greater" in start(overrides={})["failed"]
    assert len(check_context(CHECKPOINT, CONTEXT, {})) == 1 and check_context(CHECKPOINT, CONTEXT, YARN) == []
