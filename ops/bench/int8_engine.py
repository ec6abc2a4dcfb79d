"""One side of `moray bench int8`: a checkpoint in stock vLLM, in a process of its own.

`python -m ops.bench.int8_engine` reads a `Work` as JSON from standard input and writes a `Result` to its file, with the
distributions beside it: they are megabytes.
"""

import os
import sys
from pathlib import Path

import msgspec
import numpy as np

from experts.linux import die_with_parent


class Transcript(msgspec.Struct, frozen=True):
    """A prompt and an answer to it, in token ids."""

    prompt_ids: list[int]
    token_ids: list[int]


class Work(msgspec.Struct, frozen=True):
    """What to answer, and along which answers to give the distributions of the next token."""

    checkpoint: str
    dtype: str
    chats: list[list[dict[str, str]]]
    along: list[Transcript] | None  # None: along every `every`th answer of its own
    every: int
    result: str  # the file to write
    distributions: str  # the .npy beside it: natural logarithms [tokens of all answers, vocabulary]
    parent: int


class Result(msgspec.Struct, frozen=True):
    texts: list[str]
    along: list[Transcript]


def main() -> None:
    work = msgspec.json.decode(sys.stdin.read(), type=Work)
    die_with_parent(work.parent)
    os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", OMP_NUM_THREADS="1", TORCHDYNAMO_DISABLE="1")
    from experts.tiny_r1.evaluate import Answer, VllmModel

    model = VllmModel(Path(work.checkpoint), work.dtype)
    answers = model.answer(work.chats)
    along = work.along
    if along is None:
        along = [Transcript(answer.prompt_ids, answer.token_ids) for answer in answers[:: work.every]]
    found = model.log_probabilities([Answer("", each.prompt_ids, each.token_ids) for each in along])
    np.save(work.distributions, np.concatenate(found))
    Path(work.result).write_bytes(msgspec.json.encode(Result([answer.text for answer in answers], along)))


if __name__ == "__main__":
    main()
