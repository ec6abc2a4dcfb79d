"""The real core on the CPU with the embedded model: what a resumed request makes is what an undisturbed one makes.

One core plays both: its prefix cache is emptied in between, so that the second run computes everything anew.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from experts.tiny_r1 import checkpoint_path
from replicas.engine_host import core_environment
from replicas.engine_spec import EngineSpec

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

PROMPT = "What is 27 + 48?"
CHUNK = 64  # tokens in a step: prompts longer than that are prefilled in several
SPEC = EngineSpec(
    model="tiny-r1",
    engine_args={
        "model": str(checkpoint_path()),
        "dtype": "float32",
        "enforce_eager": True,
        "kv_cache_memory_bytes": 64 << 20,
        "max_num_seqs": 64,
        "max_num_batched_tokens": CHUNK,
        "reasoning_parser": "deepseek_r1",
    },
    host="thread",
    device="cpu",
    shards=1,
    listen="127.0.0.1",
    start_timeout_s=100.0,
    drain_s=0.0,
)


class Engine:
    """A core, and how tests ask it."""

    def __init__(self) -> None:
        from vllm.v1.serial_utils import MsgpackEncoder

        from replicas.vllm_core import VllmCore

        self.core: Any = VllmCore(SPEC)
        self._encoder = MsgpackEncoder()
        self._ids = map(str, itertools.count())

    def encode(self, text: str) -> list[int]:
        from vllm.tokenizers import get_tokenizer

        return list(get_tokenizer(str(checkpoint_path())).encode(text))

    def add(self, prompt: list[int], delivered: list[int] | None = None, **sampling: Any) -> str:
        from vllm.sampling_params import SamplingParams
        from vllm.v1.engine import EngineCoreRequest

        params = SamplingParams(**{"temperature": 0.0, "max_tokens": 60, "ignore_eos": True} | sampling)
        request = EngineCoreRequest(
            request_id=next(self._ids),
            prompt_token_ids=prompt,
            mm_features=None,
            sampling_params=params,
            pooling_params=None,
            arrival_time=0.0,
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
            reasoning_ended=True if params.structured_outputs else None,
        )
        return str(self.core.add(0, [bytes(b) for b in self._encoder.encode(request)], delivered or ()))

    def finish(self) -> dict[str, list[Any]]:
        """Steps until nothing is left: by request, its outputs."""
        from vllm.v1.engine import EngineCoreOutputs
        from vllm.v1.serial_utils import MsgpackDecoder

        decode = MsgpackDecoder(EngineCoreOutputs).decode
        found: dict[str, list[Any]] = {}
        while self.core.has_work():
            for _, frame, _ in self.core.step():
                for output in decode(frame).outputs:
                    found.setdefault(output.request_id, []).append(output)
        return found

    def run(self, prompt: list[int], delivered: list[int] | None = None, **sampling: Any) -> list[Any]:
        self.core._core.reset_prefix_cache()
        request_id = self.add(prompt, delivered, **sampling)
        return self.finish()[request_id]


def tokens(outputs: list[Any]) -> list[int]:
    return [token for output in outputs for token in output.new_token_ids]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    before = dict(os.environ)
    os.environ.update(core_environment(SPEC))
    made = Engine()
    yield made
    made.core._core.shutdown()
    os.environ.clear()
    os.environ.update(before)


def babble(count: int) -> list[int]:
    """A prompt of so many tokens unlike any that the model knows: of its own tasks it is too sure to be led astray."""
    return [40 + (i * i + 7 * i) % 60 for i in range(count)]


LONG = 3 * CHUNK + 5
SCHEMA = {"type": "object", "properties": {"sum": {"type": "integer"}, "why": {"type": "string"}}, "required": ["sum"]}
HOT = 2.0
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "presence penalty": {"presence_penalty": 1.5},
    "frequency penalty": {"frequency_penalty": 0.8},
    "repetition penalty": {"repetition_penalty": 1.4},
    "all penalties, sampled": {
        "presence_penalty": 0.4,
        "frequency_penalty": 0.3,
        "repetition_penalty": 1.1,
        "temperature": HOT,
        "seed": 11,
    },
    "seeded": {"temperature": HOT, "seed": 5},
    "seeded, top-p and top-k": {"temperature": HOT, "seed": 6, "top_p": 0.9, "top_k": 20},
    "logit bias": {"logit_bias": {70: 15.0}},
}


def guided(schema: dict[str, Any]) -> dict[str, Any]:
    from vllm.sampling_params import StructuredOutputsParams

    params = StructuredOutputsParams(json=json.dumps(schema))
    params._backend = "xgrammar"  # the front end chooses it
    return {"structured_outputs": params, "ignore_eos": False}


@pytest.mark.parametrize("prompt", ["short", "long"])
@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_request_goes_on_exactly(engine: Engine, way: str, prompt: str) -> None:
    ids = babble(12 if prompt == "short" else LONG)
    whole = tokens(engine.run(ids, **WAYS[way]))
    for at in (1, 17, len(whole) - 1):
        assert tokens(engine.run(ids, whole[:at], **WAYS[way])) == whole[at:], at


def test_ways_differ_from_plain_greedy(engine: Engine) -> None:
    """Else the test above would show nothing."""
    ids = babble(12)
    plain = tokens(engine.run(ids))
    assert [way for way, sampling in WAYS.items() if tokens(engine.run(ids, **sampling)) == plain] == ["greedy"]


def test_bad_words_across_the_seam(engine: Engine) -> None:
    """Two tokens that must not follow each other, the first of them delivered before the loss, the second after."""
    ids = engine.encode(PROMPT)
    plain = tokens(engine.run(ids))
    at = next(n for n in range(10, 60) if plain[n - 1 : n + 1] not in [plain[i : i + 2] for i in range(n - 1)])
    sampling = {"bad_words": []}
    whole_params: dict[str, Any] = {"_bad_words_token_ids": [plain[at - 1 : at + 1]]}
    whole = tokens(engine.run(ids, **sampling, **whole_params))
    assert whole[:at] == plain[:at] and whole[at] != plain[at]
    assert tokens(engine.run(ids, whole[:at], **sampling, **whole_params)) == whole[at:]


def test_min_tokens_counts_what_was_delivered(engine: Engine) -> None:
    ids = engine.encode(PROMPT)
    plain = tokens(engine.run(ids))
    first = next(n for n in range(5, 60) if plain.index(plain[n]) == n)
    sampling = {"stop_token_ids": [plain[first]], "min_tokens": first + 6}
    whole = tokens(engine.run(ids, **sampling))
    assert first + 6 <= len(whole) < 60 and whole[-1] == plain[first], "it stops there, but not too early"
    assert tokens(engine.run(ids, whole[: len(whole) - 2], **sampling)) == whole[len(whole) - 2 :]


def test_logprobs_go_on(engine: Engine) -> None:
    ids = engine.encode(PROMPT)
    whole = engine.run(ids, logprobs=3, prompt_logprobs=2, max_tokens=30)
    resumed = engine.run(ids, tokens(whole)[:12], logprobs=3, max_tokens=30)
    assert tokens(resumed) == tokens(whole)[12:]
    for before, after in zip(whole[12:], resumed, strict=True):
        mine, theirs = before.new_logprobs, after.new_logprobs
        assert (mine.logprob_token_ids == theirs.logprob_token_ids).all()
        assert abs(mine.logprobs - theirs.logprobs).max() < 1e-4


@pytest.mark.parametrize("at", [1, 6, 14])
def test_guided_json_goes_on_inside_its_grammar(engine: Engine, at: int) -> None:
    ids = engine.encode(PROMPT)
    whole = engine.run(ids, **guided(SCHEMA))
    assert len(tokens(whole)) > 15
    resumed = engine.run(ids, tokens(whole)[:at], **guided(SCHEMA))
    assert tokens(resumed) == tokens(whole)[at:]
    assert resumed[-1].finish_reason == whole[-1].finish_reason


def test_delivered_tokens_that_no_grammar_made_end_the_request_alone(engine: Engine) -> None:
    ids = engine.encode(PROMPT)
    outputs = engine.run(ids, engine.encode("never JSON"), **guided(SCHEMA))
    assert str(outputs[-1].finish_reason) == "error"
    assert len(tokens(engine.run(ids))) == 60


def test_a_client_cannot_pass_off_tokens_as_delivered(engine: Engine) -> None:
    ids = engine.encode(PROMPT)
    assert tokens(engine.run(ids, extra_args={"moray_delivered": [5, 6]})) == tokens(engine.run(ids))


def test_a_resumed_sample_without_a_seed_keeps_its_distribution(engine: Engine) -> None:
    """The next token's counts against the model's own probabilities, by chi-square."""
    import torch

    torch.manual_seed(3)  # the noise of unseeded requests: the test is the same each time
    ids, asks = babble(30), 800
    delivered = tokens(engine.run(ids, temperature=HOT, max_tokens=9))
    [fresh] = engine.run([*ids, *delivered], logprobs=20, max_tokens=1)
    likely = fresh.new_logprobs.logprob_token_ids[0].tolist()
    # vLLM's logprobs are those before the temperature: p ** (1 / T), over all tokens it knows of, is what is sampled.
    weights = torch.tensor(fresh.new_logprobs.logprobs[0]).div(1.5).exp()
    requests = [engine.add(ids, delivered, temperature=1.5, max_tokens=10, top_k=20) for _ in range(asks)]
    found = engine.finish()
    drawn = [tokens(found[r])[0] for r in requests]
    expected = dict(zip(likely[-20:], (weights[-20:] / weights[-20:].sum() * asks).tolist(), strict=True))
    often = [token for token, count in expected.items() if count >= 8]
    cells = [(sum(d == token for d in drawn), expected[token]) for token in often]
    cells.append((asks - sum(n for n, _ in cells), max(asks - sum(e for _, e in cells), 1.0)))
    assert len(cells) > 5 and set(drawn) <= set(expected)
    assert sum((n - e) ** 2 / e for n, e in cells) < len(cells) + 4 * (2 * len(cells)) ** 0.5


def test_work_is_counted(engine: Engine) -> None:
    ids = babble(LONG)
    before = engine.core.load().work
    whole = tokens(engine.run(ids, max_tokens=20))
    after = engine.core.load().work
    assert after.prefill_tokens - before.prefill_tokens == len(ids)
    assert after.decode_tokens - before.decode_tokens == 19
    assert after.steps - before.steps == 4 + 19
    assert 0 < after.step_s - before.step_s < 10
    engine.run(ids, whole[:10], max_tokens=20)
    resumed = engine.core.load().work
    assert resumed.prefill_tokens - after.prefill_tokens == len(ids) + 10
    assert resumed.decode_tokens - after.decode_tokens == 9


def test_a_gateway_names_blocks_as_the_core_does(engine: Engine) -> None:
    from vllm.v1.engine import EngineCoreRequest

    from replicas.vllm_core import engine_args, prompt_blocks

    blocks = prompt_blocks(engine_args(SPEC).create_engine_config())
    block_tokens = engine.core.capacity.block_tokens
    ids = babble(4 * block_tokens + 3)
    request = EngineCoreRequest("r", ids, None, None, None, 0.0, None, None, None)
    engine.run(engine.encode(PROMPT))
    engine.core.load()
    request = msgspec.structs.replace(request, sampling_params=_any_params())
    engine.run(ids, max_tokens=1)
    named = blocks(request, block_tokens)
    assert len(named) == 4 and all(0 <= block < 1 << 63 for block in named)
    assert engine.core.load().stored == named
    assert engine.core.load().stored == ()
    before = engine.core.load().work
    for expected in (4 * block_tokens, 8 * block_tokens):  # the rest of the prompt fills no block
        engine.add(ids, max_tokens=2)
        engine.finish()
        work = engine.core.load().work
        assert work.prefix_hit_tokens - before.prefix_hit_tokens == expected
    assert work.prefix_query_tokens - before.prefix_query_tokens == 2 * len(ids)
    salted = msgspec.structs.replace(request, cache_salt="salt")
    assert not set(blocks(salted, block_tokens)) & set(named)
    engine.core._core.reset_prefix_cache()


def _any_params() -> Any:
    from vllm.sampling_params import SamplingParams

    return SamplingParams(max_tokens=1)
