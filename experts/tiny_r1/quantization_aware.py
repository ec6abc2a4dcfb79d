"""Quantisation-aware fine-tuning: the embedded model learns to be the model that it was, in int8.

    python -m experts.tiny_r1.quantization_aware --out RUN
    python -m experts.tiny_r1.export --model RUN/model.pt --out RUN/checkpoint

Starts from the committed checkpoint. While it learns, it computes with what `experts.quantize` would make of its
weights, the experts' 3-D tensors and the attention's layers, and with inputs of those layers rounded to int8 a token at
a time; the vocabulary's tables are rounded to bf16. Rounding has no gradient worth the name: the weights learn as if it
were not there (straight-through estimator, Bengio et al. 2013). The loss is the divergence from the float model's
next-token distributions, of completions only, and nothing else: what is wanted is the same answers, and beside a
divergence this small any other loss would lead away from them.

RUN receives model.pt with float weights, which lose nothing more by `moray quantize` than training showed them;
training_log.jsonl and hyperparameters.json. About four minutes on one CPU core.
"""

import argparse
import copy
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from experts.quantize import quantize_weight
from experts.tiny_r1 import checkpoint_path
from experts.tiny_r1.batches import held_out_conversations
from experts.tiny_r1.curriculum import CURRICULUM, Stage
from experts.tiny_r1.export import load_checkpoint
from experts.tiny_r1.model import Attention, MixtureOfExperts, Output, TinyR1, load_weights, save_weights
from experts.tiny_r1.train import IGNORED, Hyperparameters, Trainer, TrainingLog, judge, plan

LEVELS: Final = 127
"""Steps of int8 on each side of zero."""

DEFAULTS: Final = Hyperparameters(
    tokens=600_000,
    tokens_per_batch=8_192,
    learning_rate=2e-5,
    warmup_steps=10,
    decay_from=0.2,
    load_balance=0.0,
    weight_decay=0.0,
    held_out=100,
    log_every=10,
)


class _StraightThrough(torch.autograd.Function):
    """Forward: the rounded values. Backward: as if `x` had come out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor) -> Tensor:
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    """`rounded` with the gradient of `x`; both of one shape."""
    out: Tensor = _StraightThrough.apply(x, rounded)  # type: ignore[no-untyped-call]
    return out


class Int8Weight(nn.Module):
    """Weights [..., out, in] -> what their int8 form says, by the scales of `experts.quantize`.

    A channel's greatest weight makes its scale, so none lies outside and no gradient is cut.
    """

    def forward(self, weight: Tensor) -> Tensor:
        with torch.no_grad():
            whole, scale = quantize_weight(weight.flatten(0, -2))
            rounded = (whole.float() * scale.float()).view_as(weight)
        return straight_through(weight, rounded)


class Int8Input(nn.Module):
    """Activations [..., features] -> rounded to int8 with a scale for each token, and back."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = x.abs().amax(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / LEVELS
            rounded = torch.round(x / scale) * scale
        return straight_through(x, rounded)


class Bf16Table(nn.Module):
    """A vocabulary's table as an int8 checkpoint keeps it."""

    def forward(self, weight: Tensor) -> Tensor:
        return straight_through(weight, weight.detach().to(torch.bfloat16).to(weight.dtype))


@contextmanager
def quantized(model: TinyR1) -> Iterator[TinyR1]:
    """`model` computing as its int8 form does; when it ends, the model has its float weights, as learned, again."""
    rounded: list[tuple[nn.Module, str, nn.Module]] = [
        (model.embed_tokens, "weight", Bf16Table()),
        (model.lm_head, "weight", Bf16Table()),
    ]
    quantizers: list[Attention | MixtureOfExperts] = []
    for module in model.modules():
        if isinstance(module, Attention):
            quantizers.append(module)
            linears = (module.q_proj, module.k_proj, module.v_proj, module.o_proj)
            rounded += [(linear, "weight", Int8Weight()) for linear in linears]
        elif isinstance(module, MixtureOfExperts):
            quantizers.append(module)
            rounded += [(module, "gate_up_proj", Int8Weight()), (module, "down_proj", Int8Weight())]
    for module, name, rounding in rounded:
        parametrize.register_parametrization(module, name, rounding)
    for quantizer in quantizers:
        quantizer.input_quantizer = Int8Input()
    try:
        yield model
    finally:
        for module, name, _ in rounded:
            parametrize.remove_parametrizations(module, name, leave_parametrized=False)
        for quantizer in quantizers:
            quantizer.input_quantizer = nn.Identity()


def distillation_loss(logits: Tensor, wanted: Tensor, targets: Tensor, denominator: float) -> Tensor:
    """Summed KL divergence of the completions' next-token distributions from `wanted`, both logits [B, L, V]."""
    learned = targets != IGNORED
    ours, theirs = (functional.log_softmax(rows[learned].float(), dim=-1) for rows in (logits, wanted))
    return functional.kl_div(ours, theirs, reduction="sum", log_target=True) / denominator


class Distiller(Trainer):
    """Trains by what the float model would have said."""

    def __init__(
        self, model: TinyR1, teacher: TinyR1, hyper: Hyperparameters, device: torch.device, run_log: TrainingLog
    ) -> None:
        super().__init__(model, hyper, device, run_log)
        self.teacher = teacher

    def loss(self, output: Output, inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.teacher(inputs).logits
        return distillation_loss(output.logits, wanted, targets, self.hyper.tokens_per_batch / 4)


def fine_tune(model: TinyR1, stage: Stage, hyper: Hyperparameters, device: torch.device, out: Path) -> None:
    """Fine-tune `model` in place and leave weights, log and settings in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    settings = {
        "hyperparameters": asdict(hyper),
        "model": model.shape.as_dict(),
        "stage": asdict(stage),
        "device": device.type,
        "torch": str(torch.__version__),
    }
    (out / "hyperparameters.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    held_out = held_out_conversations(stage, hyper.held_out, hyper.seed)
    [steps] = plan([stage], hyper)
    with (out / "training_log.jsonl").open("w", encoding="utf-8") as file:
        run_log = TrainingLog(file)
        run_log.write("held_out", step=0, weights="float", exact=judge(model, held_out, device))
        with quantized(model):
            run_log.write("held_out", step=0, weights="int8", exact=judge(model, held_out, device))
            trainer = Distiller(model, teacher, hyper, device, run_log)
            trainer.train_stage(stage, 0, steps, steps)
            run_log.write("held_out", step=steps, weights="int8", exact=judge(model, held_out, device))
        save_weights(model, out / "model.pt")
        run_log.write("end", step=trainer.step, tokens=trainer.tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tune the embedded model for int8.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--warm-start", type=Path, help="model.pt to start from; default: the committed checkpoint")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=float, default=DEFAULTS.tokens, help="token budget, for example 1e6")
    parser.add_argument("--tokens-per-batch", type=int, default=DEFAULTS.tokens_per_batch)
    parser.add_argument("--learning-rate", type=float, default=DEFAULTS.learning_rate)
    parser.add_argument("--seed", type=int, default=DEFAULTS.seed)
    parser.add_argument("--threads", type=int, default=1, help="torch threads on the CPU")
    arguments = parser.parse_args()

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    chosen = {"tokens_per_batch": arguments.tokens_per_batch, "learning_rate": arguments.learning_rate}
    chosen |= {"tokens": int(arguments.tokens), "seed": arguments.seed}
    hyper = Hyperparameters(**(asdict(DEFAULTS) | chosen))
    device = torch.device(arguments.device)
    model = load_weights(arguments.warm_start) if arguments.warm_start else load_checkpoint(checkpoint_path())
    fine_tune(model.to(device), CURRICULUM[-1], hyper, device, arguments.out)


if __name__ == "__main__":
    main()
