"""A plan as settings: the YAML of a profile. `cluster/profiles/*.yaml` are this, for the tiers on 8xA100-80GB."""

from __future__ import annotations

from experts.limits import Limits, NoTime, limits
from experts.model_spec import ModelSpec
from experts.sharding import LONG_CONTEXT, Assessment, Demand, assess, legal, recommended
from experts.topology import Cluster
from ops.errors import UserError


def served(spec: ModelSpec, cluster: Cluster, demand: Demand) -> list[Assessment]:
    """Layouts that our replicas can have, one engine core each."""
    return [assess(spec, cluster, layout, demand) for layout in legal(spec, cluster) if layout.one_engine]


def profile(spec: ModelSpec, cluster: Cluster, demand: Demand, command: str) -> str:
    """Settings for `spec` on the cluster, by the planner. `command`: what makes them. UserError: it does not fit."""
    found = served(spec, cluster, demand)
    best = recommended(found)
    if best is None:
        from ops.planner.cli import reason

        raise UserError(reason(found, None))
    try:
        limited = limits(spec, cluster, best, demand)
    except NoTime as problem:
        raise UserError(f"{best.layout}: {problem}; allow more by --tpot-ms") from None
    return _text(spec, cluster, demand, best, limited, command)


def _text(spec: ModelSpec, cluster: Cluster, demand: Demand, best: Assessment, limited: Limits, command: str) -> str:
    tpot = f"{1e3 * demand.tpot_s:g} ms"
    trained = "" if spec.max_context >= LONG_CONTEXT else f" # {spec.name} itself allows {spec.max_context:,}"
    return f"""\
# {spec.name}'s shape on {cluster}. Made by `{command}`.
# Predicted: {best.tokens_per_s:,.0f} output tokens/s ({demand.prompt:,} in, {demand.output:,} out, {tpot} a token).
# {best.layout} is the smallest group within 10% of the most that one engine core a replica gives: a dead rank
# takes its whole group.
model:
  dtype: bfloat16
  max_model_len: {LONG_CONTEXT}{trained}
engine:
  device: cuda
  # So many decode within {tpot} a token, prompts coming as fast as answers end.
  max_num_seqs: {limited.sequences}
  # With all of them decoding, a step full of prompts takes {1e3 * limited.full_step_s:.1f} ms.
  max_num_batched_tokens: {limited.batched_tokens}
  # MiB on each GPU: {limited.contexts} contexts of {LONG_CONTEXT:,} tokens in each replica.
  kv_cache_mib: {int(limited.kv_bytes) >> 20}
  enable_prefix_caching: true
  extra:
    enable_chunked_prefill: true
    # Of one prompt, beside others: with a chunk of a {LONG_CONTEXT:,}-token prompt, steps take
    # {1e3 * limited.long_step_s:.1f} ms in the mean over the prompt, {1e3 * limited.last_step_s:.1f} at its end.
    long_prefill_token_threshold: {limited.prompt_chunk}
experts:
  expert_parallel: {best.layout.group}
replicas:
  count: {best.groups}
router:
  # Lets prompts in at a pace that keeps it, whatever their length.
  tpot_slo_s: {demand.tpot_s:g}
"""
