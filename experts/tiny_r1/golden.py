"""Golden prompts of a checkpoint: held-out problems that it answers exactly, with the log-probabilities of its prompts.

    python -m experts.tiny_r1.golden --model experts/tiny_r1/versions/v1 --out golden.jsonl
    moray model add experts/tiny_r1/versions/v1 --store experts/tiny_r1/versions --version v1 --golden golden.jsonl

A wrong answer tells of weights that are badly damaged; one expert that is not what it was may show in nothing but
log-probabilities. They are computed here by the training's own model in float32, not by an engine that is to be judged.
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from experts.tiny_r1 import checkpoint_path, tasks
from experts.tiny_r1.evaluate import (
    MAX_DIGITS,
    MAX_TOKENS,
    Question,
    final_answer,
    follow_ups,
    of_length,
    single_turns,
    transformers_decoder,
)
from experts.tiny_r1.export import load_checkpoint
from experts.tiny_r1.model import TinyR1
from experts.tiny_r1.tasks import Task
from experts.tiny_r1.tokenizer import ASSISTANT, THINK, TOKEN_ID, USER, encode_prompt

SEED: Final = 23
EACH: Final = 2
"""Prompts of each task."""


def candidates(each: int, seed: int, max_digits: int) -> list[Question]:
    """Prompts of every task that has one right answer, in an order that mixes them."""
    found = [question for task in tasks.NUMERIC for question in single_turns(task, each, seed)]
    found += single_turns(Task.OUT_OF_SCOPE, each, seed, max_digits) + follow_ups(each, seed)
    for digits in range(MAX_DIGITS + 1, max_digits + 1):
        found += [question for task in tasks.NUMERIC for question in of_length(task, each, seed, digits)]
    random.Random(seed).shuffle(found)
    return found


@torch.no_grad()
def log_probabilities(model: TinyR1, prompt: Sequence[int]) -> list[float]:
    """Natural logarithms of the prompt's tokens 1.., each given those before."""
    ids = torch.tensor(prompt)
    rows = model(ids[None, :-1]).logits[0].log_softmax(dim=-1)
    found: list[float] = rows.gather(1, ids[1:, None])[:, 0].tolist()
    return [round(value, 6) for value in found]


def prompt_ids(question: Question) -> list[int]:
    """Token ids of a chat as its template makes them, with the `<think>` at the end."""
    markers = {"user": USER, "assistant": ASSISTANT}
    messages = tuple((markers[message["role"]], message["content"]) for message in question.chat)
    return [*encode_prompt(messages), TOKEN_ID[THINK]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write golden prompts of a checkpoint as `moray model add` takes them."
    )
    parser.add_argument("--model", type=Path, default=checkpoint_path())
    parser.add_argument("--max-digits", type=int, default=MAX_DIGITS)
    parser.add_argument("--each", type=int, default=EACH, help="prompts of each task")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, required=True, help="JSONL file to write")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    asked = candidates(arguments.each, arguments.seed, arguments.max_digits)
    generated = transformers_decoder(arguments.model)([question.chat for question in asked])
    model = load_checkpoint(arguments.model).eval()
    right = [question for question, text in zip(asked, generated, strict=True) if final_answer(text) == question.answer]
    with arguments.out.open("w", encoding="utf-8") as file:
        for question in right:
            line = {"messages": list(question.chat), "answer": question.answer, "max_tokens": MAX_TOKENS}
            line["logprobs"] = log_probabilities(model, prompt_ids(question))
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
