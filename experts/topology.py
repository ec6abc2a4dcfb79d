"""The cluster that a model is laid out on: nodes, GPUs, and the links between them. Pure.

Bandwidths are bytes a second in one direction, as NVIDIA's data sheets give them; what is reached of them is
`sharding.Efficiency`'s affair.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU. Dense rates, without sparsity."""

    name: str
    memory: float  # bytes, as its runtime reports them
    bandwidth: float  # bytes/s of its HBM
    bf16_flops: float
    int8_ops: float
    link: float  # bytes/s to the others of its node, through NVLink


GPUS: Mapping[str, Gpu] = MappingProxyType(
    {
        gpu.name: gpu
        for gpu in (
            Gpu("A100-40GB", 42.3e9, 1.555e12, 312e12, 624e12, 300e9),
            Gpu("A100-80GB", 85.1e9, 2.039e12, 312e12, 624e12, 300e9),
            Gpu("H100-80GB", 85.0e9, 3.35e12, 989e12, 1979e12, 450e9),
            Gpu("H200-141GB", 150.7e9, 4.8e12, 989e12, 1979e12, 450e9),
        )
    }
)
NETWORK = 25e9  # bytes/s of each GPU to other nodes: one 200 Gb/s adapter a GPU, as in a DGX A100
_FORM = re.compile(r"(?:(\d+)x)?(\d+)x([A-Za-z0-9-]+)")


class UnknownCluster(ValueError):
    """The text names no cluster that we know. The message says what is possible."""


@dataclass(frozen=True)
class Cluster:
    """`nodes` of `gpus_per_node` each."""

    nodes: int
    gpus_per_node: int
    gpu: Gpu
    network: float = NETWORK

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    def __str__(self) -> str:
        return f"{f'{self.nodes}x' if self.nodes > 1 else ''}{self.gpus_per_node}x{self.gpu.name}"

    def share_across_nodes(self, group: int) -> float:
        """Of what a rank sends to the others of its group of GPUs, evenly, the share that leaves its node."""
        here = min(group, self.gpus_per_node)
        return (group - here) / (group - 1) if group > 1 else 0.0


def parse(text: str) -> Cluster:
    """Reads "8xA100-80GB" (one node), "4x8xH200-141GB" (four nodes of eight). Raises UnknownCluster."""
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise UnknownCluster(f"{text!r} is no cluster: write GPUSxGPU or NODESxGPUSxGPU, such as 8xA100-80GB")
    nodes, gpus, name = int(match[1] or 1), int(match[2]), match[3]
    gpu = next((gpu for known, gpu in GPUS.items() if known.lower() == name.lower()), None)
    if gpu is None:
        raise UnknownCluster(f"{text!r}: no GPU {name} is known here; there are {', '.join(GPUS)}")
    if not nodes or not gpus:
        raise UnknownCluster(f"{text!r}: a cluster has at least one GPU")
    return Cluster(nodes, gpus, gpu)
