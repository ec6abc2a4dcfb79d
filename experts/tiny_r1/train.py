"""Trains the embedded model through its curriculum.

    python -m experts.tiny_r1.train --out RUN --device cuda --tokens 600e6 --workers 14
    python -m experts.tiny_r1.export --model RUN/model.pt --out experts/tiny_r1/versions/v1

RUN receives model.pt (after every stage), training_log.jsonl and hyperparameters.json. Needs torch, numpy and
safetensors only.
A later version of the model is one stage more, from the weights of the version before:

    python -m experts.tiny_r1.train --out RUN --warm-start experts/tiny_r1/versions/v1 --stage five_digits …
"""

import argparse
import json
import logging
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from experts.tiny_r1.batches import BatchStream, collate, held_out_conversations, width_for
from experts.tiny_r1.conversations import Conversation
from experts.tiny_r1.curriculum import CURRICULUM, Stage, stage_named
from experts.tiny_r1.export import load_checkpoint
from experts.tiny_r1.model import (
    ModelShape,
    Output,
    TinyR1,
    expert_shares,
    load_balance_loss,
    load_weights,
    save_weights,
)
from experts.tiny_r1.tokenizer import PAD_ID

log = logging.getLogger(__name__)

IGNORED = -100
"""Target that cross_entropy skips."""


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    tokens: int = 5_000_000
    """Tokens in all stages together, padding included."""
    tokens_per_batch: int = 32_768
    learning_rate: float = 3e-3
    warmup_steps: int = 200
    decay_from: float = 0.4
    """Part of the run after which the rate falls linearly to zero."""
    beta1: float = 0.9
    beta2: float = 0.98
    weight_decay: float = 0.05
    gradient_clip: float = 1.0
    load_balance: float = 0.04
    """Weight of the router's auxiliary loss; at 0.01 an expert died."""
    seed: int = 1
    workers: int = 0
    """Processes that make batches; 0 makes them in the training process."""
    held_out: int = 800
    """Held-out conversations that are judged after each stage."""
    log_every: int = 50
    """Steps."""


def plan(stages: Sequence[Stage], hyper: Hyperparameters) -> list[int]:
    """The steps of each stage."""
    total = max(len(stages), hyper.tokens // hyper.tokens_per_batch)
    whole = sum(stage.share for stage in stages)
    return [max(1, round(total * stage.share / whole)) for stage in stages]


def learning_rate(step: int, total: int, hyper: Hyperparameters) -> float:
    """Linear warm-up, constant, then linear decay to zero at the last step."""
    warmup = min(1.0, (step + 1) / max(1, hyper.warmup_steps))
    left = (total - step) / max(1.0, total * (1.0 - hyper.decay_from))
    return hyper.learning_rate * min(warmup, left, 1.0)


class TrainingLog:
    """One JSON object a line: `event` is `step`, `held_out` or `end`."""

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.started = time.monotonic()

    def write(self, event: str, **values: object) -> None:
        line = {"event": event, "seconds": round(time.monotonic() - self.started, 1), **values}
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        log.info("%s", " ".join(f"{key}={value}" for key, value in line.items()))


class _WorkerStreams(IterableDataset[tuple[Tensor, Tensor]]):
    """One batch stream per loader process, each with its own seed; yields tokens and learned targets."""

    def __init__(self, stream: BatchStream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        worker = get_worker_info()
        seed = self.stream.seed * 1000 + (worker.id if worker else 0)
        for batch in BatchStream(self.stream.stage, self.stream.tokens_per_batch, seed):
            yield torch.from_numpy(batch.tokens), torch.from_numpy(batch.learned)


def _batches(
    stage: Stage, hyper: Hyperparameters, number: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs [B, L] and targets [B, L] of a stage on the device, endlessly."""
    loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
        _WorkerStreams(BatchStream(stage, hyper.tokens_per_batch, hyper.seed * 100 + number)),
        batch_size=None,
        num_workers=hyper.workers,
        prefetch_factor=8 if hyper.workers else None,
        pin_memory=device.type == "cuda",
    )
    for tokens, learned in loader:
        tokens = tokens.to(device, non_blocking=True).long()
        learned = learned.to(device, non_blocking=True)
        yield tokens[:, :-1], tokens[:, 1:].masked_fill(~learned, IGNORED)


def completion_loss(logits: Tensor, targets: Tensor, denominator: float) -> Tensor:
    """Summed cross-entropy of the completions over a fixed denominator.

    A fixed one, since batches of long rows hold few completions: each learned token weighs the same in every batch.
    """
    rows = logits.flatten(0, 1).float()
    return functional.cross_entropy(rows, targets.flatten(), ignore_index=IGNORED, reduction="sum") / denominator


class Trainer:
    def __init__(self, model: TinyR1, hyper: Hyperparameters, device: torch.device, run_log: TrainingLog) -> None:
        self.model, self.hyper, self.device, self.log = model, hyper, device, run_log
        matrices = [p for p in model.parameters() if p.dim() > 1]
        scales = [p for p in model.parameters() if p.dim() <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": hyper.weight_decay}, {"params": scales, "weight_decay": 0.0}],
            lr=hyper.learning_rate,
            betas=(hyper.beta1, hyper.beta2),
            fused=device.type == "cuda",
        )
        self.step = 0
        self.tokens = 0

    def train_stage(self, stage: Stage, number: int, steps: int, total: int) -> None:
        batches = _batches(stage, self.hyper, number, self.device)
        for _ in range(steps):
            inputs, targets = next(batches)
            rate = learning_rate(self.step, total, self.hyper)
            measured = self.train_step(inputs, targets, rate)
            self.step += 1
            self.tokens += inputs.numel()
            if self.step % self.hyper.log_every == 0 or self.step == total:
                figures = {name: float(f"{value.item():.4g}") for name, value in measured.items()}
                self.log.write(
                    "step", stage=stage.name, step=self.step, tokens=self.tokens, rate=float(f"{rate:.3g}"), **figures
                )

    def loss(self, output: Output, inputs: Tensor, targets: Tensor) -> Tensor:
        """What is to be small, beside the router's balance. inputs, targets: token ids [B, L]."""
        return completion_loss(output.logits, targets, self.hyper.tokens_per_batch / 4)

    def train_step(self, inputs: Tensor, targets: Tensor, rate: float) -> dict[str, Tensor]:
        """One update; the figures stay on the device so that the GPU need not wait for the log."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            output = self.model(inputs)
        loss = self.loss(output, inputs, targets)
        balance = load_balance_loss(output, inputs != PAD_ID)
        self.optimizer.zero_grad(set_to_none=True)
        (loss + self.hyper.load_balance * balance).backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.hyper.gradient_clip)
        self.optimizer.step()
        with torch.no_grad():
            learned = targets != IGNORED
            right = (output.logits.argmax(dim=-1) == targets) & learned
            shares = expert_shares(output.chosen, inputs != PAD_ID) * self.model.shape.num_experts
            mean_loss = loss.detach() * (self.hyper.tokens_per_batch / 4) / learned.sum()
            return {
                "loss": mean_loss,
                "token_accuracy": right.sum() / learned.sum(),
                "balance": balance.detach(),
                "gradient_norm": norm,
                "least_share": shares.min(),
                "most_share": shares.max(),
            }


@torch.no_grad()
def judge(model: TinyR1, conversations: Sequence[Conversation], device: torch.device) -> dict[str, float]:
    """Share of conversations per task whose whole completion is the model's greedy choice, token by token.

    With the true completion as input every argmax must hit; that is exactly when greedy decoding writes it itself.
    """
    hits: dict[str, list[bool]] = defaultdict(list)
    encoded = [(conversation, *conversation.tokens()) for conversation in conversations]
    encoded.sort(key=lambda item: len(item[1]) + len(item[2]))
    for start in range(0, len(encoded), 32):
        part = encoded[start : start + 32]
        width = width_for(max(len(prompt) + len(completion) for _, prompt, completion in part))
        if width is None:
            continue
        batch = collate([(prompt + completion, len(prompt)) for _, prompt, completion in part], width)
        tokens = torch.from_numpy(batch.tokens).to(device).long()
        learned = torch.from_numpy(batch.learned).to(device)
        guesses = model(tokens[:, :-1]).logits.argmax(dim=-1)
        right = ((guesses == tokens[:, 1:]) | ~learned).all(dim=1).tolist()
        for (conversation, _, _), hit in zip(part, right, strict=True):
            hits[conversation.problem.task.value].append(hit)
    return {task: round(float(np.mean(found)), 4) for task, found in sorted(hits.items())}


def train(model: TinyR1, stages: Sequence[Stage], hyper: Hyperparameters, device: torch.device, out: Path) -> None:
    """Run the stages in order, each from the weights of the one before, and leave model, log and settings in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    schedule = plan(stages, hyper)
    held_out = held_out_conversations(stages[-1], hyper.held_out, hyper.seed)
    settings = {
        "hyperparameters": asdict(hyper),
        "model": model.shape.as_dict(),
        "stages": [{**asdict(stage), "steps": steps} for stage, steps in zip(stages, schedule, strict=True)],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
    }
    (out / "hyperparameters.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    with (out / "training_log.jsonl").open("w", encoding="utf-8") as file:
        run_log = TrainingLog(file)
        trainer = Trainer(model, hyper, device, run_log)
        run_log.write("held_out", step=0, exact=judge(model, held_out, device))
        for number, (stage, steps) in enumerate(zip(stages, schedule, strict=True)):
            trainer.train_stage(stage, number, steps, sum(schedule))
            save_weights(model, out / "model.pt")
            run_log.write("held_out", stage=stage.name, step=trainer.step, exact=judge(model, held_out, device))
        run_log.write("end", step=trainer.step, tokens=trainer.tokens)


def started_from(weights: Path | None) -> TinyR1:
    """The model in a model.pt or a checkpoint's directory; None: a new one with random weights."""
    if weights is None:
        return TinyR1(ModelShape())
    return load_checkpoint(weights) if weights.is_dir() else load_weights(weights)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the embedded model.")
    default = Hyperparameters()
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--stage", action="append", help="train this stage only (repeatable); default: all, in order")
    parser.add_argument("--warm-start", type=Path, help="model.pt or checkpoint's directory to start from")
    parser.add_argument("--tokens", type=float, default=default.tokens, help="token budget, for example 600e6")
    parser.add_argument("--tokens-per-batch", type=int, default=default.tokens_per_batch)
    parser.add_argument("--learning-rate", type=float, default=default.learning_rate)
    parser.add_argument("--warmup-steps", type=int, default=default.warmup_steps)
    parser.add_argument("--decay-from", type=float, default=default.decay_from)
    parser.add_argument("--workers", type=int, default=default.workers)
    parser.add_argument("--held-out", type=int, default=default.held_out)
    parser.add_argument("--log-every", type=int, default=default.log_every)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--threads", type=int, default=1, help="torch threads on the CPU")
    arguments = parser.parse_args()

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    hyper = Hyperparameters(
        tokens=math.floor(arguments.tokens),
        tokens_per_batch=arguments.tokens_per_batch,
        learning_rate=arguments.learning_rate,
        warmup_steps=arguments.warmup_steps,
        decay_from=arguments.decay_from,
        workers=arguments.workers,
        held_out=arguments.held_out,
        log_every=arguments.log_every,
        seed=arguments.seed,
    )
    device = torch.device(arguments.device)
    model = started_from(arguments.warm_start)
    stages = [stage_named(name) for name in arguments.stage] if arguments.stage else CURRICULUM
    train(model.to(device), stages, hyper, device, arguments.out)


if __name__ == "__main__":
    main()
