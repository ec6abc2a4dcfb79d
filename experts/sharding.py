"""Every way to lay a mixture-of-experts model out on a cluster, what it costs, and the one to take. Pure.

A *group* is the GPUs of one replica: `tensor_parallel` x `data_parallel` of them. Attention is split over the first
and copied over the second, each copy with requests of its own; experts are split over the whole group, by expert
(expert parallelism) or each of them by its width (vLLM's rule for MoE layers: docs, "Expert Parallel Deployment").
The cluster holds as many groups as fit; a lost GPU takes its group, and no other.

Step times are sums: what a step reads over the reached bandwidth, computes over the reached rate, sends, and launches.
They are predictions; `Efficiency` says from what, and ops/planner/LAYOUTS.md how far they can be trusted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from experts.model_spec import ModelSpec, tier
from experts.step_model import StepTime, shipped, touched
from experts.topology import GPUS, Cluster, Gpu

LONG_CONTEXT = 32_768


@dataclass(frozen=True)
class Efficiency:
    """Shares of a data sheet's figures that are reached, and fixed costs; those of one H200 with the 32B tier's shape.

    Bandwidth, compute and launches are what `experts/machines/h200.json` comes to (`reached`), so that planner and
    simulator have one source. Reading and computing do not overlap: 512 sequences took longer than 64 by what 448 more
    tokens compute and read. int8 (Triton, without a tile file of its own) took 21.6 ms at 512: 18 us a token beside its
    reading. Not measured by us: collectives; 0.8 of a link, and 15 us each to begin, are what NCCL's own tests show on
    such nodes.
    """

    bandwidth: float
    compute: float
    layer_s: float  # launches and all else that no step is without, reading apart
    compute_int8: float = 0.17
    link: float = 0.8
    collective_s: float = 15e-6


def reached(step: StepTime, spec: ModelSpec, gpu: Gpu) -> Efficiency:
    """What a step time in bf16, fitted to one `gpu` with `spec` on it, says of both."""
    bandwidth = 2.0 * spec.routed_parameters / step.experts_s
    always = weight_bytes(spec, Layout(1, 1, by_expert=False), 2.0) - 2.0 * spec.routed_parameters
    read_s = (always - spec.embedding_parameters * 2.0 + _table_bytes(spec, 1)) / bandwidth
    return Efficiency(
        bandwidth=bandwidth / gpu.bandwidth,
        compute=2.0 * passed_parameters(spec) / step.prefill_token_s / gpu.bf16_flops,
        layer_s=max(step.base_s - read_s, 0.0) / spec.layers,
    )


@cache
def usual_efficiency() -> Efficiency:
    """The shipped H200's, which all predictions are made with."""
    fitted = shipped("h200")
    return reached(fitted.step, tier(fitted.model), GPUS[fitted.gpu])


@dataclass(frozen=True)
class Demand:
    """What is to be served, and how quickly."""

    prompt: int = 1024  # tokens, on average
    output: int = 256
    tpot_s: float = 0.05  # with the prefill of those who come
    imbalance: float = 1.0  # tokens of the fullest rank over the mean, where experts are dealt out whole
    weight_bytes: float = 2.0  # a parameter's; 1: int8 of experts and attention
    kv_value_bytes: float = 2.0
    utilization: float = 0.9  # of a GPU's memory, vLLM's gpu_memory_utilization
    activation_bytes: float = 3e9  # activations and CUDA graphs: assumed, as for the simulated machines
    max_sequences: int = 1024  # in one step of a data-parallel rank

    @property
    def context(self) -> int:
        """Tokens of a running sequence, on average over its life."""
        return self.prompt + self.output // 2


@dataclass(frozen=True)
class Layout:
    """A group's shape."""

    tensor_parallel: int
    data_parallel: int
    by_expert: bool  # experts are dealt out whole; else each is cut by its width

    @property
    def group(self) -> int:
        return self.tensor_parallel * self.data_parallel

    @property
    def one_engine(self) -> bool:
        """Whether one engine core runs it: what a replica of ours is (the setting experts.expert_parallel)."""
        return self.data_parallel == 1 and (self.by_expert or self.group == 1)

    def __str__(self) -> str:
        data = f" DP{self.data_parallel}" if self.data_parallel > 1 else ""
        experts = f" EP{self.group}" if self.by_expert else ""
        return f"TP{self.tensor_parallel}{data}{experts}"

    def vllm_arguments(self) -> dict[str, int | bool]:
        """In vLLM's own names."""
        return {
            "tensor_parallel_size": self.tensor_parallel,
            "data_parallel_size": self.data_parallel,
            "enable_expert_parallel": self.by_expert,
        }


@dataclass(frozen=True)
class Step:
    """One step of a group in which every data-parallel rank decodes `sequences`, prompts computed beside them."""

    sequences: int
    weights_s: float  # reading weights
    attention_s: float  # of the decoding sequences over their KV: reading or computing it, whichever is longer
    compute_s: float  # of their tokens, attention aside
    prefill_s: float  # computing prompts, attention included
    communication_s: float
    launch_s: float
    node_bytes: float  # sent by one GPU within its node
    network_bytes: float  # and to other nodes

    @property
    def seconds(self) -> float:
        computed = self.compute_s + self.prefill_s
        return self.weights_s + self.attention_s + computed + self.communication_s + self.launch_s


@dataclass(frozen=True)
class Prefill:
    """Prompt tokens in a step of a group, and how many tokens of their own each of them attends to, on average."""

    tokens: float
    earlier: float
    cached: float = 0.0  # of those, computed in earlier steps


@dataclass(frozen=True)
class Assessment:
    """What a layout comes to. Bytes and tokens are of one GPU or one group, as named."""

    layout: Layout
    groups: int  # replicas that the cluster holds
    weight_bytes: float  # on one GPU, the fullest
    kv_tokens: int  # of one group
    missing_bytes: float  # on one GPU, to hold the weights and one sequence of `context`; 0: it fits
    step: Step | None  # at the most sequences that memory and TPOT allow; None: it fits none, or none in time
    unused_gpus: int

    @property
    def long_contexts(self) -> int:
        """32K contexts that the whole cluster holds at once."""
        return self.groups * (self.kv_tokens // LONG_CONTEXT)

    @property
    def tokens_per_s(self) -> float:
        """Output tokens of the whole cluster, with the prefill that belongs to them."""
        if self.step is None:
            return 0.0
        return self.groups * self.layout.data_parallel * self.step.sequences / self.step.seconds


def legal(spec: ModelSpec, cluster: Cluster) -> Iterator[Layout]:
    """Layouts that vLLM accepts for the model and that fill no more than the cluster; groups of powers of two, and of
    whole nodes."""
    sizes = sorted({2**i for i in range(cluster.gpus.bit_length())} | {cluster.gpus_per_node * n for n in range(1, 65)})
    for group in (size for size in sizes if size <= cluster.gpus):
        for tensor in (size for size in sizes if group % size == 0 and spec.attention.can_split(size)):
            if tensor > cluster.gpus_per_node or spec.dense_width % tensor or spec.shared_width % tensor:
                continue  # tensor parallelism across nodes: two all-reduces a layer over the network
            if group == 1 or spec.expert_width % group == 0:
                yield Layout(tensor, group // tensor, by_expert=False)
            if 1 < group <= spec.experts:
                yield Layout(tensor, group // tensor, by_expert=True)


def weight_bytes(spec: ModelSpec, layout: Layout, parameter_bytes: float) -> float:
    """Of the fullest GPU: with experts that do not divide evenly, some hold one more."""
    tensor, group = layout.tensor_parallel, layout.group
    if layout.by_expert:
        routed = -(-spec.experts // group) * spec.moe_layers * spec.expert_parameters
    else:
        routed = spec.routed_parameters // group
    attention = spec.layers * spec.attention.kept_whole(spec.hidden, tensor)
    mlps = (spec.dense_parameters + spec.shared_parameters) // tensor
    # Tables and gates stay in 16 bits when the rest is int8.
    return (routed + attention + mlps) * parameter_bytes + (
        spec.embedding_parameters // tensor + spec.router_parameters
    ) * 2.0


def kv_bytes_per_token(spec: ModelSpec, layout: Layout, demand: Demand) -> float:
    """On one GPU, for a token of one of its own data-parallel rank's sequences."""
    return spec.kv_bytes_per_token(demand.kv_value_bytes, layout.tensor_parallel)


def joining(layout: Layout, demand: Demand, sequences: int) -> Prefill:
    """What a step prefills on average: prompts come as fast as the answers of `sequences` on each rank end."""
    tokens = sequences * layout.data_parallel * demand.prompt / demand.output
    return Prefill(tokens, earlier=demand.prompt / 2)


def step(
    spec: ModelSpec,
    cluster: Cluster,
    layout: Layout,
    demand: Demand,
    sequences: int,
    efficiency: Efficiency,
    prefill: Prefill | None = None,
) -> Step:
    """A step in which `sequences` on each data-parallel rank decode; beside them `prefill`, or what is `joining`."""
    gpu, group, together = cluster.gpu, layout.group, sequences * layout.data_parallel
    prefill = prefill or joining(layout, demand, sequences)
    bandwidth = gpu.bandwidth * efficiency.bandwidth
    # Of the experts a step reads those that any of its tokens is routed to, evenly.
    share = touched(prefill.tokens, together, spec.top_k / spec.experts, spread=1.0)
    routed = spec.routed_parameters / group * demand.weight_bytes
    held = weight_bytes(spec, layout, demand.weight_bytes) - spec.embedding_parameters / layout.tensor_parallel * 2.0
    read = max(held - routed, 0.0) + routed * share + _table_bytes(spec, layout.tensor_parallel)
    kv = sequences * demand.context * kv_bytes_per_token(spec, layout, demand)
    if demand.weight_bytes == 1:
        rate = gpu.int8_ops * efficiency.compute_int8 * group
    else:
        rate = gpu.bf16_flops * efficiency.compute * group
    attention_rate = gpu.bf16_flops * efficiency.compute * group
    token = 2.0 * passed_parameters(spec, demand.imbalance if layout.by_expert else 1.0)
    pairs = spec.layers * spec.attention.prefill_flop_per_pair() * prefill.earlier * prefill.tokens
    again = spec.layers * spec.attention.flop_per_cached_token() * prefill.cached
    scores = spec.layers * spec.attention.flop_per_pair() * demand.context * together
    tokens = sequences + prefill.tokens / layout.data_parallel
    node_bytes, network_bytes, collectives = _communication(spec, cluster, layout, tokens)
    moved_s = node_bytes / (gpu.link * efficiency.link) + network_bytes / (cluster.network * efficiency.link)
    return Step(
        sequences=sequences,
        weights_s=read / bandwidth,
        attention_s=max(kv / bandwidth, scores / attention_rate),
        compute_s=together * token / rate,
        prefill_s=prefill.tokens * token / rate + (pairs + again) / attention_rate,
        communication_s=moved_s + collectives * efficiency.collective_s,
        launch_s=spec.layers * efficiency.layer_s,
        node_bytes=node_bytes,
        network_bytes=network_bytes,
    )


def _table_bytes(spec: ModelSpec, tensor_parallel: int) -> float:
    """Of the vocabulary's table that a step reads: the output's."""
    return spec.vocabulary * spec.hidden / tensor_parallel * 2.0


def passed_parameters(spec: ModelSpec, imbalance: float = 1.0) -> float:
    """Those that a token is multiplied with: without the input's table; of routed ones, as on the fullest rank."""
    routed = spec.moe_layers * spec.top_k * spec.expert_parameters
    looked_up = 0 if spec.tied_embeddings else spec.vocabulary * spec.hidden
    return spec.active_parameters - looked_up + (imbalance - 1.0) * routed


def _communication(spec: ModelSpec, cluster: Cluster, layout: Layout, tokens: float) -> tuple[float, float, int]:
    """(bytes that one GPU sends within its node, to other nodes, collectives) in a step of `tokens` on each rank.

    A ring all-reduce of n bytes over r ranks sends 2 n (r - 1) / r from each. Attention's is over the tensor-parallel
    ranks; the experts' is too without data parallelism, else tokens are gathered from the whole group before them and
    their outputs scattered back (vLLM's `allgather_reducescatter`, its default).
    """
    tensor, group = layout.tensor_parallel, layout.group
    activations = tokens * spec.hidden * 2.0
    reduce = 2 * activations * (tensor - 1) / tensor
    tensor_bytes = spec.layers * reduce * (1 if layout.data_parallel > 1 else 2)
    collectives = spec.layers * (2 if layout.data_parallel == 1 else 1) * (tensor > 1)
    dense_bytes = spec.dense_layers * reduce if layout.data_parallel > 1 else 0.0
    if layout.data_parallel == 1:
        return tensor_bytes, 0.0, collectives
    everyone = activations * layout.data_parallel
    exchanged = 2 * spec.moe_layers * everyone * (group - 1) / group
    away = exchanged * cluster.share_across_nodes(group)
    return tensor_bytes + dense_bytes + exchanged - away, away, collectives + 2 * spec.moe_layers


def assess(
    spec: ModelSpec, cluster: Cluster, layout: Layout, demand: Demand, efficiency: Efficiency | None = None
) -> Assessment:
    """What the layout comes to on the cluster."""
    efficiency = efficiency or usual_efficiency()
    weights = weight_bytes(spec, layout, demand.weight_bytes)
    per_token = kv_bytes_per_token(spec, layout, demand)
    left = demand.utilization * cluster.gpu.memory - demand.activation_bytes - weights
    kv_per_rank = max(int(left // per_token), 0)
    missing = max(demand.context * per_token - left, 0.0)
    most = min(kv_per_rank // demand.context, demand.max_sequences)
    best = None
    low, high = 0, most  # the most sequences whose step keeps the TPOT; a step only grows with them
    while low < high:
        middle = (low + high + 1) // 2
        found = step(spec, cluster, layout, demand, middle, efficiency)
        if found.seconds <= demand.tpot_s:
            low, best = middle, found
        else:
            high = middle - 1
    return Assessment(
        layout=layout,
        groups=cluster.gpus // layout.group,
        weight_bytes=weights,
        kv_tokens=kv_per_rank * layout.data_parallel,
        missing_bytes=missing,
        step=best,
        unused_gpus=cluster.gpus % layout.group,
    )


SMALLER_GROUP = 0.9  # of the best layout's throughput is enough for a smaller group: less is lost with a GPU


def recommended(assessments: list[Assessment]) -> Assessment | None:
    """The smallest group within 10% of the most tokens a second; None if none fits in time."""
    best = max((a.tokens_per_s for a in assessments), default=0.0)
    enough = [a for a in assessments if a.step is not None and a.tokens_per_s >= SMALLER_GROUP * best]
    return min(enough, key=lambda a: (a.layout.group, -a.tokens_per_s), default=None)
