"""A replica's metrics: its engine's load, its prefix cache, its version and its GPUs."""

import time

from replicas import metrics
from replicas.core import CoreLoad
from replicas.gpus import Gpus
from replicas.messages import ReplicaInfo
from replicas.ray_metrics import Make, in_replica

TELL_S = 1.0  # oftener than they are scraped


class ReplicaMetrics:
    """Keeps the replica's part of the catalogue, but what `ExpertMetrics` does."""

    def __init__(self, info: ReplicaInfo, gpus: Gpus, make: Make = in_replica) -> None:
        self._model, self._capacity = info.model, info.capacity
        self._gpus = gpus
        self._told_at = 0.0
        self._running = make(metrics.RUNNING_REQUESTS)
        self._waiting = make(metrics.ENGINE_WAITING_REQUESTS)
        self._fill = make(metrics.BATCH_FILL)
        self._kv_used = make(metrics.KV_USED)
        self._kv_headroom = make(metrics.KV_HEADROOM)
        self._steps = make(metrics.ENGINE_STEPS)
        self._prefix_queries = make(metrics.PREFIX_QUERY_TOKENS)
        self._prefix_hits = make(metrics.PREFIX_HIT_TOKENS)
        self._gpu_utilization = make(metrics.GPU_UTILIZATION)
        self._gpu_memory_used = make(metrics.GPU_MEMORY_USED)
        self._gpu_memory_total = make(metrics.GPU_MEMORY_TOTAL)
        self._started_s, self._version = info.epoch / 1e9, info.version
        self._start = make(metrics.REPLICA_START)
        self._model_version = make(metrics.MODEL_VERSION)

    def serves(self, version: str) -> None:
        """It was given another version's weights."""
        if version != self._version:
            self._model_version.tell(0, self._model, self._version)
            self._version, self._told_at = version, 0.0

    def tell(self, load: CoreLoad) -> None:
        """Called with each report; tells once in TELL_S."""
        now = time.monotonic()
        if now - self._told_at < TELL_S:
            return
        self._told_at = now
        model, capacity, work = self._model, self._capacity, load.work
        self._start.tell(self._started_s, model)
        self._model_version.tell(1, model, self._version)
        self._running.tell(load.running, model)
        self._waiting.tell(load.waiting, model)
        self._fill.tell(load.running / capacity.max_num_seqs, model)
        self._kv_used.tell(load.kv_used, model)
        self._kv_headroom.tell(round((1 - load.kv_used) * capacity.kv_tokens), model)
        self._steps.tell(work.steps, model)
        self._prefix_queries.tell(work.prefix_query_tokens, model)
        self._prefix_hits.tell(work.prefix_hit_tokens, model)
        for gpu in self._gpus.read():
            self._gpu_utilization.tell(gpu.utilization, gpu.name)
            self._gpu_memory_used.tell(gpu.memory_used, gpu.name)
            self._gpu_memory_total.tell(gpu.memory_total, gpu.name)
