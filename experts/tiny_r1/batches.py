"""Endless batches of conversations, rows of like length together so that little is padding."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from experts.tiny_r1.conversations import Conversation, converse
from experts.tiny_r1.curriculum import Stage
from experts.tiny_r1.tasks import Source
from experts.tiny_r1.tokenizer import PAD_ID

WIDTHS: Final = (128, 256, 512, 1024, 2048, 3072)
"""Row widths in tokens; a longer conversation is dropped."""


class Batch(NamedTuple):
    tokens: npt.NDArray[np.int16]
    """[rows, width + 1]: inputs are all but the last column, targets all but the first."""
    learned: npt.NDArray[np.bool_]
    """[rows, width]: the targets that belong to a completion."""


@dataclass(frozen=True, slots=True)
class BatchStream:
    """Batches of about `tokens_per_batch` tokens from one stage; `seed` makes the stream."""

    stage: Stage
    tokens_per_batch: int
    seed: int

    def __iter__(self) -> Iterator[Batch]:
        source = Source(random.Random(self.seed), self.stage.max_digits)
        waiting: dict[int, list[tuple[list[int], int]]] = {width: [] for width in WIDTHS}
        while True:
            prompt, completion = converse(source, self.stage.mix).tokens()
            ids = prompt + completion
            width = width_for(len(ids) - 1)
            if width is None:
                continue
            rows = waiting[width]
            rows.append((ids, len(prompt)))
            if len(rows) >= max(1, self.tokens_per_batch // width):
                yield collate(rows, width)
                rows.clear()


def width_for(length: int) -> int | None:
    return next((width for width in WIDTHS if length <= width), None)


def collate(rows: list[tuple[list[int], int]], width: int) -> Batch:
    """Rows of (token ids, length of the prompt), padded on the right."""
    tokens = np.full((len(rows), width + 1), PAD_ID, dtype=np.int16)
    learned = np.zeros((len(rows), width), dtype=np.bool_)
    for row, (ids, prompt_length) in enumerate(rows):
        tokens[row, : len(ids)] = ids
        learned[row, prompt_length - 1 : len(ids) - 1] = True
    return Batch(tokens, learned)


def held_out_conversations(stage: Stage, count: int, seed: int) -> list[Conversation]:
    """Conversations whose problems training never draws."""
    source = Source(random.Random(seed), stage.max_digits, held_out=True)
    return [converse(source, stage.mix) for _ in range(count)]
