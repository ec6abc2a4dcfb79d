"""The command `moray plan shard`: arguments and output. What is planned lies in `experts.sharding`."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ops.errors import UserError
from ops.options import AsJsonObject

if TYPE_CHECKING:
    from experts.model_spec import ModelSpec
    from experts.sharding import Assessment, Demand
    from experts.topology import Cluster

app = typer.Typer(no_args_is_help=True, help="Plan before you rent: what fits where, and how fast it would be.")
Model = Annotated[
    str, typer.Option("--model", help="A tier (7b, 16b, 32b, 671b), a checkpoint's directory, or its config.json.")
]
OnCluster = Annotated[str, typer.Option("--cluster", help="GPUSxGPU, or NODESxGPUSxGPU.")]
Prompt = Annotated[int, typer.Option("--prompt", min=1, help="Prompt tokens of a request, on average.")]
Output = Annotated[int, typer.Option("--output", min=1, help="Output tokens.")]
TpotMs = Annotated[float, typer.Option("--tpot-ms", min=0.1, help="Milliseconds a token of a running stream may take.")]
Weights = Annotated[str, typer.Option("--weights", help="bf16, int8 or fp8.")]
CLUSTER, PROMPT, OUTPUT, TPOT_MS = "8xA100-80GB", 1024, 256, 50.0
WEIGHT_BYTES = {"bf16": 2.0, "int8": 1.0, "fp8": 1.0}


@app.callback()
def plan() -> None:
    """Plan before you rent: what fits where, and how fast it would be."""


@app.command(
    epilog="Examples: `moray plan shard --model 32b --cluster 8xA100-80GB` · "
    "`moray plan shard --model ~/models/Qwen3-30B-A3B --cluster 2x8xH200-141GB --prompt 4096 --json`"
)
def shard(
    model: Model = "32b",
    cluster: OnCluster = CLUSTER,
    prompt: Prompt = PROMPT,
    output: Output = OUTPUT,
    tpot_ms: TpotMs = TPOT_MS,
    weights: Weights = "bf16",
    imbalance: Annotated[
        float, typer.Option(min=1.0, help="Tokens of the fullest rank over the mean, under expert parallelism.")
    ] = 1.0,
    as_json: AsJsonObject = False,
) -> None:
    """Every legal layout of a model on a cluster, what it costs, and the one to take.

    Layouts: TP tensor-parallel ranks, DP copies of attention with requests of their own, EP experts dealt out whole
    over the group; without EP each expert is cut by its width. tok/s: output tokens of the whole cluster within the
    TPOT, the prefill that belongs to them included. Predicted: efficiencies are fitted to one H200 (within 4% of what
    was measured there, int8 within 11%); what links cost is not measured. ops/planner/LAYOUTS.md has more of it.
    """
    from experts.sharding import assess, legal, recommended

    spec, machines = shape(model), _cluster(cluster)
    demand = dataclasses.replace(_demand(prompt, output, tpot_ms, weights), imbalance=imbalance)
    found = [assess(spec, machines, layout, demand) for layout in legal(spec, machines)]
    best = recommended(found)
    ours = recommended([each for each in found if each.layout.one_engine])
    if as_json:
        sys.stdout.write(json.dumps(_as_json(spec, machines, found, best, ours)) + "\n")
    else:
        _show(spec, machines, found, best, ours)
    if best is None:
        raise typer.Exit(1)


@app.command(
    epilog="Examples: `moray plan profile --model 32b --cluster 4xH100-80GB > moray.yaml`, then "
    "`moray up --config moray.yaml --model ~/models/Qwen3-30B-A3B`"
)
def profile(
    model: Model = "32b",
    cluster: OnCluster = CLUSTER,
    prompt: Prompt = PROMPT,
    output: Output = OUTPUT,
    tpot_ms: TpotMs = TPOT_MS,
    weights: Weights = "bf16",
) -> None:
    """Settings for a model on a cluster, as YAML: shards, replicas, step limits, KV memory, 32K of context.

    `moray up --profile 7b`, 16b or 32b takes those of a tier on 8xA100-80GB, which ship with Moray.
    """
    from ops.planner.profile import profile as made

    given = {"--model": model, "--cluster": cluster}
    given |= {"--prompt": str(prompt)} if prompt != PROMPT else {}
    given |= {"--output": str(output)} if output != OUTPUT else {}
    given |= {"--tpot-ms": f"{tpot_ms:g}"} if tpot_ms != TPOT_MS else {}
    given |= {"--weights": weights} if weights != "bf16" else {}
    command = " ".join(["moray plan profile", *(f"{name} {value}" for name, value in given.items())])
    sys.stdout.write(made(shape(model), _cluster(cluster), _demand(prompt, output, tpot_ms, weights), command))


@app.command(
    epilog="Examples: `moray experts --json > load.json`, then `moray plan experts --load load.json --shards 2 "
    "--out plan.json`, then `moray up --expert-parallel 2 --set experts.plan=plan.json`"
)
def experts(
    load: Annotated[Path, typer.Option(metavar="FILE", help="What `moray experts --json` printed.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the plan goes; an older one is replaced.")],
    shards: Annotated[int, typer.Option(min=2, help="Shards of a replica's experts.")] = 2,
    spare: Annotated[
        int, typer.Option(min=0, help="Slots of all shards together beyond one an expert, for second copies.")
    ] = 0,
    from_: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="The plan in force: few experts move from it.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="With --from: is the move worth it, for this tier or checkpoint?")
    ] = None,
    cluster: OnCluster = CLUSTER,
    sequences: Annotated[int, typer.Option(min=1, help="For that: requests in a step.")] = 64,
    interval_s: Annotated[float, typer.Option(min=1, help="For that: seconds until the next plan.")] = 600.0,
    as_json: AsJsonObject = False,
) -> None:
    """Which shard holds which experts, so that no shard has much more to do than another.

    Made for a load that was measured; of second copies each takes its part of the expert's tokens. Max over mean: the
    fullest shard's tokens over the mean, the mean of all layers; 1 is even.
    """
    from experts.sharding import Layout
    from experts.worth import Serving
    from ops.planner.placement import planned, read_load, read_plan, verdict

    told, old = read_load(load), read_plan(from_) if from_ else None
    found = planned(told, shards, spare, old)
    worth = None
    if model is not None:
        if old is None:
            raise UserError("--model asks whether a move is worth it, and --from says from where: give both")
        demand = _demand(PROMPT, OUTPUT, TPOT_MS, "bf16")
        layout = Layout(shards, 1, True)
        worth = verdict(
            told, old, found, Serving(shape(model), _cluster(cluster), layout, demand, sequences, interval_s)
        )
    out.write_bytes(found.plan.to_json())
    if as_json:
        figures = {name: getattr(found, name) for name in ("before", "after", "bound", "moved", "slots")}
        figures |= {"worth": worth.answer, "why": worth.reason} if worth else {}
        sys.stdout.write(json.dumps(figures) + "\n")
        return
    was = "the plan in force" if from_ else "vLLM's placement"
    why = f"{worth.reason}\n" if worth else ""
    moved = "" if found.moved is None else f"; {found.moved} of {found.slots} slots get another expert"
    sys.stdout.write(
        f"max over mean {found.before:.3f} with {was}, {found.after:.3f} with this one (none is below "
        f"{found.bound:.3f}){moved}\n{why}{out}: moray up --expert-parallel {shards} --set experts.plan={out}\n"
    )


def _demand(prompt: int, output: int, tpot_ms: float, weights: str) -> Demand:
    from experts.sharding import Demand

    if weights not in WEIGHT_BYTES:
        raise UserError(f"--weights {weights}: there is no such one; take one of {', '.join(WEIGHT_BYTES)}")
    return Demand(prompt=prompt, output=output, tpot_s=tpot_ms / 1000, weight_bytes=WEIGHT_BYTES[weights])


def _cluster(cluster: str) -> Cluster:
    from experts.topology import UnknownCluster, parse

    try:
        return parse(cluster)
    except UnknownCluster as error:
        raise UserError(f"--cluster {error}") from None


def shape(model: str) -> ModelSpec:
    """A tier's shape, or a checkpoint's. UserError: it cannot be had."""
    from experts.model_spec import TIERS, NotUnderstood, from_config, tier

    if model.lower() in TIERS:
        return tier(model.lower())
    path = Path(model).expanduser()
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text())
    except OSError:
        tiers = ", ".join(TIERS)
        raise UserError(
            f"--model {model}: neither a tier ({tiers}) nor a file or directory with a config.json"
        ) from None
    except ValueError as error:
        raise UserError(f"{file} is no JSON: {error}") from None
    try:
        return from_config(config, file.resolve().parent.name)
    except NotUnderstood as error:
        raise UserError(str(error)) from None


def reason(found: Sequence[Assessment], best: Assessment | None) -> str:
    """Why this one, in a sentence; or why none."""
    from experts.sharding import SMALLER_GROUP

    if best is None:
        nearest = min(found, key=lambda a: a.missing_bytes)
        if nearest.missing_bytes:
            return (
                f"Nothing fits: {nearest.layout} comes nearest and lacks {nearest.missing_bytes / 1e9:.1f} GB on each "
                "GPU; take more or larger GPUs, or weights in 8 bits"
            )
        return "Every layout is slower than the TPOT even with one sequence: allow more, or take faster GPUs"
    most = max(found, key=lambda a: a.tokens_per_s)
    if most is best:
        return f"Take {best.layout}: it gives the most tokens a second"
    share = best.tokens_per_s / most.tokens_per_s
    return (
        f"Take {best.layout}: it gives {share:.0%} of the most tokens a second ({most.layout}) in groups of "
        f"{best.layout.group} GPUs, the smallest within {1 - SMALLER_GROUP:.0%}; a lost GPU takes its whole group"
    )


def replicas(best: Assessment, ours: Assessment | None) -> str:
    """What `moray up` can have of it, in a sentence: its replicas are one engine core each."""
    if ours is None:
        return "`moray up` serves none of them in time: its replicas are one engine core each, TPn EPn"
    share = ours.tokens_per_s / best.tokens_per_s
    return (
        f"`moray up` runs one engine core a replica, TPn EPn. Of those take {ours.layout}, {share:.0%} of that: "
        f"--replicas {ours.groups} --expert-parallel {ours.layout.group}"
    )


def _show(
    spec: ModelSpec, cluster: Cluster, found: Sequence[Assessment], best: Assessment | None, ours: Assessment | None
) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(
        f"[bold]{spec.name}[/] on {cluster}: {spec.parameters / 1e9:.1f}B parameters, "
        f"{spec.active_parameters / 1e9:.1f}B active, {spec.moe_layers} x {spec.experts} experts, top {spec.top_k}, "
        f"{spec.kv_bytes_per_token() / 1024:.0f} KiB of KV a token",
        highlight=False,
        soft_wrap=True,
    )
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("layout", no_wrap=True)
    for column in ("replicas", "GB/GPU", "KV tokens", "32K", "batch", "ms/step", "MB/step", "tok/s"):
        table.add_column(column, justify="right", no_wrap=True)
    for each in found:
        step = each.step
        cells = (
            [
                f"{step.sequences * each.layout.data_parallel:,}",
                f"{1e3 * step.seconds:.1f}",
                f"{(step.node_bytes + step.network_bytes) / 1e6:,.0f}",
                f"{each.tokens_per_s:,.0f}",
            ]
            if step
            else ["", "", "", f"lacks {each.missing_bytes / 1e9:.0f} GB" if each.missing_bytes else "too slow"]
        )
        table.add_row(
            str(each.layout),
            str(each.groups),
            f"{each.weight_bytes / 1e9:.1f}",
            f"{each.kv_tokens / 1000:,.0f}K",
            str(each.long_contexts),
            *cells,
            style="bold green" if each is best else None,
        )
    console.print(table)
    console.print(f"{reason(found, best)}.", highlight=False, soft_wrap=True)
    if best is not None and ours is not best:
        console.print(replicas(best, ours), highlight=False, soft_wrap=True)


def _as_json(
    spec: ModelSpec, cluster: Cluster, found: Sequence[Assessment], best: Assessment | None, ours: Assessment | None
) -> dict[str, Any]:
    return {
        "model": spec.name,
        "cluster": str(cluster),
        "parameters": spec.parameters,
        "active_parameters": spec.active_parameters,
        "layouts": [_layout(each) for each in found],
        "recommended": str(best.layout) if best else None,
        "vllm_arguments": best.layout.vllm_arguments() if best else None,
        "reason": reason(found, best),
        "moray": {"experts.expert_parallel": ours.layout.group, "replicas.count": ours.groups} if ours else None,
    }


def _layout(each: Assessment) -> dict[str, Any]:
    step = each.step
    figures: dict[str, Any] = {
        "layout": str(each.layout),
        "replicas": each.groups,
        "unused_gpus": each.unused_gpus,
        "weight_bytes_per_gpu": round(each.weight_bytes),
        "kv_tokens_per_replica": each.kv_tokens,
        "contexts_32k": each.long_contexts,
        "missing_bytes_per_gpu": round(each.missing_bytes),
        "tokens_per_s": round(each.tokens_per_s, 1),
    }
    if step is not None:
        figures |= {
            "batch_per_replica": step.sequences * each.layout.data_parallel,
            "step_ms": round(1e3 * step.seconds, 2),
            "node_bytes_per_step": round(step.node_bytes),
            "network_bytes_per_step": round(step.network_bytes),
        }
    return figures
