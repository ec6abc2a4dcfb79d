"""Judges a checkpoint by what it answers: greedy decoding, exact match of the final answer.

    python -m experts.tiny_r1.evaluate --per-task 1000 --out experts/tiny_r1/versions/v1/evaluation.json

A version that has learned longer numbers is asked for them too, and the version before on the same prompts:

    python -m experts.tiny_r1.evaluate --model experts/tiny_r1/versions/v1 --max-digits 5 --per-task 400 --out BEFORE
    python -m experts.tiny_r1.evaluate --model NEW --max-digits 5 --per-task 400 --compare v1=BEFORE \
        --out NEW/evaluation.json

Decodes with stock vLLM through its public `LLM` class, or with transformers (`--backend transformers`, slower). Every
problem is held out: its calculation or text never occurs in training (`held_out.py`).
"""

import argparse
import json
import logging
import os
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from experts.tiny_r1 import checkpoint_path, tasks
from experts.tiny_r1.conversations import Conversation, Mix, converse
from experts.tiny_r1.curriculum import CURRICULUM
from experts.tiny_r1.small_talk import REFUSAL, refusal_text
from experts.tiny_r1.tasks import Problem, Source, Task
from experts.tiny_r1.tokenizer import THINK_END, USER, VOCAB_SIZE
from experts.tiny_r1.unseen_prompts import CALCULATIONS, REFUSED

log = logging.getLogger(__name__)

MAX_DIGITS: Final = 4
MAX_TOKENS: Final = 512
MAX_MODEL_LEN: Final = 4096

REFUSALS: Final = frozenset(refusal_text(digits) for digits in (MAX_DIGITS, MAX_DIGITS + 1))

Decode = Callable[[Sequence[Sequence[dict[str, str]]]], list[str]]
"""Chats -> generated text of each, from behind the prompt's `<think>`."""


@dataclass(frozen=True, slots=True)
class Question:
    """A chat and the only answer that counts as right."""

    group: str
    chat: Sequence[dict[str, str]]
    answer: str


@dataclass(frozen=True, slots=True)
class Score:
    right: int
    of: int

    @property
    def share(self) -> float:
        return self.right / self.of


@dataclass(frozen=True, slots=True)
class Failure:
    group: str
    prompt: str
    wanted: str
    generated: str


class Answer(NamedTuple):
    """What a model generated, and from what."""

    text: str
    prompt_ids: list[int]
    token_ids: list[int]


def final_answer(generated: str) -> str | None:
    """What follows `</think>`, as the reasoning parser splits it; None if the reasoning never ended."""
    _, marker, answer = generated.partition(THINK_END)
    return answer if marker else None


def single_turns(task: Task, count: int, seed: int, max_digits: int = MAX_DIGITS) -> list[Question]:
    """Held-out problems of one task, each alone and without a system prompt, no prompt twice."""
    source = Source(random.Random(f"{seed}-{task}"), max_digits, held_out=True)
    found: dict[str, Question] = {}
    while len(found) < count:
        problem = tasks.draw(source, task)
        chat = Conversation(((USER, problem.prompt),), problem).chat()
        found.setdefault(problem.prompt, Question(task.value, chat, problem.answer))
    return list(found.values())


def of_length(task: Task, count: int, seed: int, digits: int) -> list[Question]:
    """The same with a number of exactly so many digits in each, and none that is longer."""
    source = Source(random.Random(f"{seed}-{task}-{digits}"), digits, held_out=True)
    found: dict[str, Question] = {}
    while len(found) < count:
        problem = tasks.draw(source, task)
        if longest_number(problem.prompt) == digits:
            chat = Conversation(((USER, problem.prompt),), problem).chat()
            found.setdefault(problem.prompt, Question(f"{task.value}_of_{digits}_digits", chat, problem.answer))
    return list(found.values())


def longest_number(text: str) -> int:
    """Digits of the longest number in a prompt; thousands may be set off by commas."""
    return max((len(number) for number in re.findall(r"\d+", re.sub(r"(?<=\d),(?=\d{3})", "", text))), default=0)


def in_conversations(count: int, seed: int, max_digits: int = MAX_DIGITS) -> list[Question]:
    """Held-out problems behind system prompts, earlier turns and long texts, mixed as in the last stage of training.

    With more `max_digits` less what is no longer to be refused.
    """
    source = Source(random.Random(f"{seed}-conversations"), MAX_DIGITS, held_out=True)
    drawn = [converse(source, CURRICULUM[-1].mix) for _ in range(count)]
    return [
        Question("in_conversations", conversation.chat(), conversation.problem.answer)
        for conversation in drawn
        if not is_refused_no_more(conversation.problem, max_digits)
    ]


def is_refused_no_more(problem: Problem, max_digits: int) -> bool:
    """Whether it was out of scope for its number's length, which a model that knows `max_digits` can take."""
    return problem.task is Task.OUT_OF_SCOPE and MAX_DIGITS < longest_number(problem.prompt) <= max_digits


def follow_ups(count: int, seed: int) -> list[Question]:
    """`Add 25 to that.` after a turn whose answer is a number."""
    source = Source(random.Random(f"{seed}-follow-ups"), MAX_DIGITS, held_out=True)
    mix = Mix({Task.FOLLOW_UP: 1.0}, max_turns=2)
    drawn = (converse(source, mix) for _ in range(count))
    return [Question(Task.FOLLOW_UP.value, conversation.chat(), conversation.problem.answer) for conversation in drawn]


def unseen_wordings() -> list[Question]:
    """Prompts by hand: what to refuse, and calculations in wordings without a template."""
    refused = [Question("unseen_refusals", [{"role": "user", "content": text}], REFUSAL) for text in REFUSED]
    asked = [("unseen_calculations", text, answer) for text, answer in CALCULATIONS]
    return refused + [Question(group, [{"role": "user", "content": text}], answer) for group, text, answer in asked]


def questions(per_task: int, seed: int, max_digits: int = MAX_DIGITS) -> list[Question]:
    """The whole evaluation: `per_task` of every task, as many conversations, and the prompts by hand.

    With `max_digits` of 5 the same prompts of up to four digits, as many again with five, and what to refuse is what a
    model refuses that knows five.
    """
    found = [question for task in tasks.NUMERIC for question in single_turns(task, per_task, seed)]
    found += single_turns(Task.OUT_OF_SCOPE, per_task, seed, max_digits)
    found += follow_ups(per_task, seed) + in_conversations(per_task, seed, max_digits) + unseen_wordings()
    for digits in range(MAX_DIGITS + 1, max_digits + 1):
        found += [question for task in tasks.NUMERIC for question in of_length(task, per_task, seed, digits)]
    return found


def judge(asked: Sequence[Question], generated: Sequence[str]) -> tuple[dict[str, Score], list[Failure]]:
    """Scores by group, and every question that was answered wrongly."""
    right: dict[str, int] = {}
    total: dict[str, int] = {}
    failures: list[Failure] = []
    for question, text in zip(asked, generated, strict=True):
        answer = final_answer(text)
        # To refuse is right in the words of each version.
        hit = answer == question.answer or (answer in REFUSALS and question.answer in REFUSALS)
        right[question.group] = right.get(question.group, 0) + hit
        total[question.group] = total.get(question.group, 0) + 1
        if not hit:
            failures.append(Failure(question.group, question.chat[-1]["content"], question.answer, text))
    return {group: Score(right[group], total[group]) for group in total}, failures


class VllmModel:
    """Stock vLLM in this process, through its public `LLM` class."""

    def __init__(self, checkpoint: Path, dtype: str = "float32") -> None:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        from vllm import LLM

        self._llm = LLM(
            model=str(checkpoint),
            dtype=dtype,
            max_model_len=MAX_MODEL_LEN,
            enforce_eager=True,
            kv_cache_memory_bytes=128 << 20,
            max_num_batched_tokens=MAX_MODEL_LEN,
            max_num_seqs=64,
            max_logprobs=-1,
        )

    def decode(self, chats: Sequence[Sequence[dict[str, str]]]) -> list[str]:
        return [answer.text for answer in self.answer(chats)]

    def answer(self, chats: Sequence[Sequence[dict[str, str]]]) -> list[Answer]:
        """Greedy."""
        from vllm import SamplingParams

        greedy = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
        outputs = self._llm.chat([list(chat) for chat in chats], greedy, use_tqdm=False)
        return [
            Answer(output.outputs[0].text, list(output.prompt_token_ids or ()), list(output.outputs[0].token_ids))
            for output in outputs
        ]

    def log_probabilities(self, answers: Sequence[Answer]) -> list[npt.NDArray[np.float32]]:
        """Of each answer's tokens, given its prompt and the tokens before: natural logarithms [tokens, vocabulary]."""
        from vllm import SamplingParams

        asked = [{"prompt_token_ids": answer.prompt_ids + answer.token_ids} for answer in answers]
        parameters = SamplingParams(
            temperature=0.0, max_tokens=1, prompt_logprobs=-1, flat_logprobs=True, detokenize=False
        )
        found: list[npt.NDArray[np.float32]] = []
        for answer, output in zip(answers, self._llm.generate(asked, parameters, use_tqdm=False), strict=True):
            flat, begin = output.prompt_logprobs, len(answer.prompt_ids)
            rows = np.full((len(answer.token_ids), VOCAB_SIZE), -np.inf, np.float32)
            for row, position in zip(rows, range(begin, begin + len(answer.token_ids)), strict=True):
                which = slice(flat.start_indices[position], flat.end_indices[position])
                row[flat.token_ids[which]] = flat.logprobs[which]
            found.append(rows)
        return found


def vllm_decoder(checkpoint: Path) -> Decode:
    """Stock vLLM in this process, float32."""
    return VllmModel(checkpoint).decode


def transformers_decoder(checkpoint: Path) -> Decode:
    """transformers' `generate`, one chat at a time, float32."""
    import torch

    model, tokenizer = _load(checkpoint)

    @torch.no_grad()
    def decode(chats: Sequence[Sequence[dict[str, str]]]) -> list[str]:
        texts: list[str] = []
        for chat in chats:
            inputs = tokenizer.apply_chat_template(
                list(chat), add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            ids = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_TOKENS)
            new = ids[0, inputs["input_ids"].shape[1] :]
            texts.append(tokenizer.decode(new, skip_special_tokens=True))
        return texts

    return decode


def _load(checkpoint: Path) -> tuple[Any, Any]:
    """Model and tokenizer; transformers ships no types for what its Auto classes return."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(checkpoint)


def expert_shares(checkpoint: Path, asked: Sequence[Question], generated: Sequence[str]) -> list[list[float]]:
    """Each expert's share of a layer's assignments over prompts and answers, times the number of experts.

    [layers][experts]; 1.0 is an equal share. Runs the finished texts through transformers, whose router logits show
    where every token went.
    """
    import torch

    model, tokenizer = _load(checkpoint)
    config = model.config
    counts = torch.zeros(config.num_hidden_layers, config.num_experts)
    with torch.no_grad():
        for question, text in zip(asked, generated, strict=True):
            chat = list(question.chat)
            prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
            ids = tokenizer(prompt + text, return_tensors="pt", add_special_tokens=False)["input_ids"]
            logits = model(ids, output_router_logits=True).router_logits
            for layer, scores in enumerate(logits):
                chosen = scores.topk(config.num_experts_per_tok, dim=-1).indices
                counts[layer] += torch.bincount(chosen.flatten(), minlength=config.num_experts)
    shares: list[list[float]] = (counts / counts.sum(dim=-1, keepdim=True) * config.num_experts).tolist()
    return [[round(share, 4) for share in layer] for layer in shares]


def report(
    scores: Mapping[str, Score],
    shares: Sequence[Sequence[float]],
    per_task: int,
    seed: int,
    max_digits: int,
    seconds: float,
) -> dict[str, object]:
    """What evaluation.json holds; the model card quotes it."""
    every = [share for layer in shares for share in layer]
    return {
        "decoding": "greedy, float32",
        "per_task": per_task,
        "seed": seed,
        "max_digits": max_digits,
        "exact_match": {
            group: {"right": score.right, "of": score.of, "percent": round(100 * score.share, 2)}
            for group, score in scores.items()
        },
        "expert_share_of_uniform": {"least": min(every), "most": max(every), "layers": shares},
        "seconds": round(seconds, 1),
    }


def compared(ours: Mapping[str, object], theirs: Mapping[str, object]) -> object:
    """Another version's scores. Raises ValueError unless both are of the same prompts."""
    for key in ("decoding", "per_task", "seed", "max_digits"):
        if ours[key] != theirs.get(key):
            raise ValueError(f"the evaluations are of other prompts: {key} is {ours[key]!r} and {theirs.get(key)!r}")
    return theirs["exact_match"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Judge a checkpoint on held-out prompts.")
    parser.add_argument("--model", type=Path, default=checkpoint_path())
    parser.add_argument("--per-task", type=int, default=1000, help="held-out prompts of each task")
    parser.add_argument("--max-digits", type=int, default=MAX_DIGITS, help="of the longest numbers to ask for")
    parser.add_argument("--compare", metavar="NAME=FILE", help="evaluation of another version on the same prompts")
    parser.add_argument("--backend", choices=("vllm", "transformers"), default="vllm")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, help="evaluation.json to write")
    parser.add_argument("--failures", type=Path, help="JSONL file for every wrong answer")
    parser.add_argument("--share-sample", type=int, default=400, help="questions over which expert shares are counted")
    arguments = parser.parse_args()

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    asked = questions(arguments.per_task, arguments.seed, arguments.max_digits)
    decode = (vllm_decoder if arguments.backend == "vllm" else transformers_decoder)(arguments.model)
    started = time.monotonic()
    generated = decode([question.chat for question in asked])
    seconds = time.monotonic() - started
    scores, failures = judge(asked, generated)
    sample = random.Random(arguments.seed).sample(range(len(asked)), min(arguments.share_sample, len(asked)))
    shares = expert_shares(arguments.model, [asked[i] for i in sample], [generated[i] for i in sample])
    found = report(scores, shares, arguments.per_task, arguments.seed, arguments.max_digits, seconds)
    if arguments.compare:
        name, _, file = arguments.compare.partition("=")
        found["compared_with"] = {name: compared(found, json.loads(Path(file).read_text(encoding="utf-8")))}
    log.info("%s", json.dumps(found, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if arguments.failures:
        lines = [{"group": f.group, "prompt": f.prompt, "wanted": f.wanted, "generated": f.generated} for f in failures]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        arguments.failures.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
