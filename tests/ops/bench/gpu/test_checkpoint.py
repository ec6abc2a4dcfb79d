"""Stand-in checkpoints: one token a word, every token a text, the tiers' real shapes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experts.model_spec import from_config
from ops.bench.gpu.checkpoint import dense_like, int8, tier, words, write
from ops.bench.gpu.workload import Prompts, Workload, at_once
from replicas.model_directory import Flaw, check

VOCABULARY = 20_000


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write(tmp_path_factory.mktemp("stand-in"), tier("32b") | {"vocab_size": VOCABULARY})


@pytest.fixture(scope="module")
def prompts(directory):
    return Prompts(directory, "m")


@given(prompt=st.integers(17, 300), seed=st.integers(0, 1000))
def test_a_prompt_has_exactly_its_tokens(prompts, prompt, seed):
    work = Workload(2, prompt, 8, 1)
    first, second = prompts.token_ids(work, seed)
    assert len(first) == len(second) == prompt
    assert first != second


def test_the_ids_are_those_that_the_chat_template_makes_of_the_body(directory, prompts):
    from transformers import AutoTokenizer

    work = at_once(3, 100, 8)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    for body, ids in zip(prompts.bodies(work, 4), prompts.token_ids(work, 4), strict=True):
        made = tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, return_dict=True)
        assert made["input_ids"] == ids


def test_every_token_has_a_text_and_words_are_one_token_each(directory, prompts):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == VOCABULARY
    assert all(tokenizer.decode([i], skip_special_tokens=False) for i in range(VOCABULARY))
    text = "".join(words(VOCABULARY)[::97])
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert len(tokenizer.encode(text).ids) == len(words(VOCABULARY)[::97])


def test_runs_differ_and_repeat(prompts):
    work = at_once(2, 64, 8)
    assert prompts.texts(work, 1) == prompts.texts(work, 1) != prompts.texts(work, 2)


def test_a_prompt_shorter_than_the_template_is_refused(prompts):
    with pytest.raises(ValueError, match="too few"):
        prompts.texts(at_once(1, 10, 8), 0)


def test_a_vocabulary_without_words_is_refused():
    with pytest.raises(ValueError, match="vocabulary of more than"):
        words(5_000)


def test_only_weights_are_missing(directory):
    assert [problem.flaw for problem in check(directory, 1)] == [Flaw.WEIGHTS]


@pytest.mark.parametrize("name", ["7b", "16b", "32b"])
def test_a_tier_keeps_its_shape(name, tmp_path):
    config = json.loads((write(tmp_path, tier(name)) / "config.json").read_text())
    assert from_config(config, name).parameters == from_config(tier(name), name).parameters


def test_the_dense_model_has_as_many_parameters():
    mixture = from_config(tier("32b"), "32b")
    dense = dense_like(tier("32b"))
    mlp = 3 * dense["hidden_size"] * dense["intermediate_size"] * dense["num_hidden_layers"]
    assert mlp == mixture.routed_parameters


def test_int8_is_told_as_our_own_checkpoints_tell_it():
    from experts.quantize import quantization_config

    assert int8(tier("32b"))["quantization_config"] == quantization_config()
