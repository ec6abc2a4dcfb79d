"""`moray bench int8`: int8 forms of the embedded model against the model itself, on real vLLM CPU engines.

Every side is stock vLLM in a process of its own, one after the other: the float32 checkpoint, the same in bf16 (what of
a difference is the shorter float's), its post-training int8 form as `moray quantize` makes it, and that of a model
which was fine-tuned for int8. All answer the same held-out prompts greedily. Then the distributions of the next token
are compared along the float32 model's own answers, so that one token that differs does not spoil what follows it.

zentorch, where it is a folder and not installed, is on the path of the int8 sides only: it brings kernels for floats
too, and the float sides are to be what runs without it.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from rich.table import Table

from experts.quantize import NotConverted, Summary, convert
from experts.tiny_r1 import checkpoint_path
from experts.tiny_r1.evaluate import Question, final_answer, judge, single_turns
from experts.tiny_r1.tasks import Task
from ops.bench.int8_engine import Result, Transcript, Work
from ops.errors import UserError
from replicas.model_directory import NO_INT8_KERNEL, has_zentorch, runs_int8_experts

TASKS = (Task.ADDITION, Task.SUBTRACTION, Task.WORD_PROBLEM, Task.MAXIMUM)
EVERY = 5  # of so many prompts one, along whose answer the distributions are compared: 200 of 1,000
LIMIT_S = 600.0  # of one side; ten times what two busy cores take

Distributions = npt.NDArray[np.float32]  # natural logarithms [tokens, vocabulary]


class Side(NamedTuple):
    """A checkpoint as it runs."""

    name: str
    checkpoint: Path
    dtype: str
    bytes: int  # of weights
    summary: Summary | None = None  # of its conversion to int8


class Said(NamedTuple):
    texts: Sequence[str]
    along: Sequence[Transcript]
    distributions: Distributions


def held_out(prompts: int, seed: int) -> list[Question]:
    """As many of each task; those of a seed are the first of those that a larger number gives."""
    return [question for task in TASKS for question in single_turns(task, prompts // len(TASKS), seed)]


def agreement(wanted: Sequence[str], got: Sequence[str]) -> tuple[float, float]:
    """Shares of the texts whose answer, behind the thinking, is the same, and that are the same as a whole.

    A text whose thinking never ended has no answer, which is equal to none.
    """
    pairs = list(zip(wanted, got, strict=True))
    answers = sum(final_answer(a) is not None and final_answer(a) == final_answer(b) for a, b in pairs)
    return answers / len(pairs), sum(a == b for a, b in pairs) / len(pairs)


def divergence(wanted: Distributions, got: Distributions) -> dict[str, float]:
    """How far `got` is from `wanted`: KL(wanted || got) in nats, mean and worst token, and how often both have the same
    likeliest token."""
    p, q = wanted.astype(np.float64), got.astype(np.float64)
    with np.errstate(invalid="ignore"):
        terms = np.where(np.isneginf(p), 0.0, np.exp(p) * (p - q))
    kl = terms.sum(axis=1)
    same = p.argmax(axis=1) == q.argmax(axis=1)
    return {"kl_mean": float(kl.mean()), "kl_max": float(kl.max()), "top1_agreement": float(same.mean())}


def measure(
    prompts: int, seed: int, qat: Path | None, zentorch: Path | None, report: Callable[[str], None]
) -> dict[str, Any]:
    """All of it; see `moray bench int8 --help`. Raises UserError."""
    _check_kernel(zentorch)
    asked = held_out(prompts, seed)
    source = checkpoint_path()
    with tempfile.TemporaryDirectory(prefix="moray-int8-") as directory:
        scratch = Path(directory)
        post_training = _int8("post_training", source, scratch)
        assert post_training.summary is not None
        sides = [
            Side("fp32", source, "float32", post_training.summary.bytes_before),
            Side("bf16", source, "bfloat16", 2 * post_training.summary.parameters),
            post_training,
        ]
        if qat is not None:
            sides.append(_int8("quantization_aware", qat, scratch))
        said: dict[str, Said] = {}
        for side in sides:
            report(f"{side.name}: {len(asked)} prompts")
            along = said["fp32"].along if said else None
            said[side.name] = _run(side, asked, along, scratch, zentorch)
    return figures(asked, sides, said)


def figures(asked: Sequence[Question], sides: Sequence[Side], said: dict[str, Said]) -> dict[str, Any]:
    """What is printed: the post-training form's figures first, then every side's."""
    full = said["fp32"]
    rows: dict[str, dict[str, Any]] = {}
    for side in sides:
        one = said[side.name]
        scores, _ = judge(asked, one.texts)
        rows[side.name] = row = {"bytes": side.bytes, "size_ratio_fp32": round(sides[0].bytes / side.bytes, 3)}
        if side.summary is not None:
            row["size_ratio_bf16"] = round(side.summary.ratio_to_bf16, 3)
        answers, whole = agreement(full.texts, one.texts)
        row |= {"agreement": answers, "whole_output_agreement": whole}
        row |= {
            name: float(f"{value:.4g}") for name, value in divergence(full.distributions, one.distributions).items()
        }
        row["accuracy"] = sum(score.right for score in scores.values()) / len(asked)
        row |= {f"accuracy_{group}": score.share for group, score in scores.items()}
    told = {"prompts": len(asked), "judged_tokens": len(full.distributions)}
    first = {name: rows["post_training"][name] for name in ("size_ratio_fp32", "size_ratio_bf16", "agreement")}
    return first | told | {"sides": rows}


def table(figures: dict[str, Any]) -> Table:
    """The sides beside each other."""
    shown = Table(title=f"moray bench int8: {figures['prompts']} prompts, {figures['judged_tokens']:,} tokens judged")
    sides = figures["sides"]
    shown.add_column("")
    for name in sides:
        shown.add_column(name.replace("_", " "), justify="right")
    for key in sides["post_training"]:
        values = (row.get(key) for row in sides.values())
        shown.add_row(key, *("" if value is None else f"{value:,}" for value in values))
    return shown


def _check_kernel(zentorch: Path | None) -> None:
    if zentorch is not None and not (zentorch / "zentorch").is_dir():
        raise UserError(f"--zentorch {zentorch}: no zentorch lies there; {NO_INT8_KERNEL}")
    if not runs_int8_experts(Path("/proc/cpuinfo").read_text(errors="replace"), zentorch is not None or has_zentorch()):
        raise UserError(f"int8 experts do not run here: {NO_INT8_KERNEL}")


def _int8(name: str, source: Path, scratch: Path) -> Side:
    """`source` converted."""
    out = scratch / name
    try:
        summary = convert(source, out, lambda *_: None)
    except NotConverted as error:
        raise UserError(str(error)) from None
    return Side(name, out, "bfloat16", summary.bytes_after, summary)  # what CPU kernels for int8 experts compute beside


def _run(
    side: Side, asked: Sequence[Question], along: Sequence[Transcript] | None, scratch: Path, zentorch: Path | None
) -> Said:
    """Raises UserError with the side's last word."""
    result, distributions = scratch / f"{side.name}.json", scratch / f"{side.name}.npy"
    work = Work(
        checkpoint=str(side.checkpoint),
        dtype=side.dtype,
        chats=[list(map(dict, question.chat)) for question in asked],
        along=None if along is None else list(along),
        every=EVERY,
        result=str(result),
        distributions=str(distributions),
        parent=os.getpid(),
    )
    paths = [str(zentorch.resolve())] if zentorch is not None and side.summary is not None else []
    path = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
    log = scratch / f"{side.name}.log"
    with log.open("wb") as sink:
        try:
            ended = subprocess.run(
                [sys.executable, "-m", "ops.bench.int8_engine"],
                input=msgspec.json.encode(work),
                env=os.environ | {"PYTHONPATH": path},
                stdout=sink,
                stderr=subprocess.STDOUT,
                timeout=LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise UserError(f"{side.name} did not end within {LIMIT_S:g} s: is this machine busy?") from None
    if ended.returncode != 0:
        raise UserError(f"{side.name} does not run here: {_last_word(log)}")
    told = msgspec.json.decode(result.read_bytes(), type=Result)
    return Said(told.texts, told.along, np.load(distributions))


def _last_word(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "it said nothing")[:500]
