"""Golden prompts against the engine: the ids are those that vLLM sees and emits, the log-probabilities its own."""

import os

import numpy as np
import pytest

from experts.tiny_r1 import store_path
from experts.tiny_r1.evaluate import Answer, VllmModel
from experts.tiny_r1.tokenizer import END_ID
from experts.versions import read, versions

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module", params=[version.name for version in versions(store_path())])
def version(request):
    return store_path() / request.param


@pytest.fixture(scope="module")
def engine(version):
    os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", OMP_NUM_THREADS="1")
    return VllmModel(version)


@pytest.fixture(scope="module")
def golden(version):
    return read(version).golden


def test_prompts_and_answers_are_the_engines_ids(engine, golden):
    assert len(golden) >= 16
    for prompt, answer in zip(golden, engine.answer([prompt.prompt for prompt in golden]), strict=True):
        assert tuple(answer.prompt_ids) == prompt.prompt_token_ids
        emitted = tuple(token for token in answer.token_ids if token != END_ID)
        assert prompt.answer_token_ids and emitted[-len(prompt.answer_token_ids) :] == prompt.answer_token_ids
        assert len(answer.token_ids) < prompt.max_tokens


def test_log_probabilities_are_the_engines(engine, golden):
    asked = [Answer("", list(prompt.prompt_token_ids[:1]), list(prompt.prompt_token_ids[1:])) for prompt in golden]
    for prompt, rows in zip(golden, engine.log_probabilities(asked), strict=True):
        found = rows[np.arange(len(rows)), list(prompt.prompt_token_ids[1:])]
        assert np.abs(found - prompt.logprobs).max() < 2e-3
