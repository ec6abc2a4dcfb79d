"""The last ten minutes in buckets of five seconds, for the console. Pure."""

import math
from typing import Any

import msgspec

from ops.controller.reports import EndedRequest

BUCKET_S = 5
KEPT_BUCKETS = 120
KEPT_VALUES = 512  # of a bucket; of more, the last ones


class Sample(msgspec.Struct):
    """Values of which percentiles are asked."""

    values: list[float] = []
    count: int = 0

    def add(self, value: float) -> None:
        if len(self.values) < KEPT_VALUES:
            self.values.append(value)
        else:
            self.values[self.count % KEPT_VALUES] = value
        self.count += 1

    def percentile(self, share: float) -> float | None:
        """By the nearest rank. None: there was nothing."""
        if not self.values:
            return None
        return sorted(self.values)[math.ceil(share * len(self.values)) - 1]


class Bucket(msgspec.Struct):
    at_s: int  # its beginning
    requests: int = 0
    failed: int = 0
    shed: int = 0
    output_tokens: int = 0
    ttft: Sample = msgspec.field(default_factory=Sample)
    tpot: Sample = msgspec.field(default_factory=Sample)
    queue: int | None = None  # the most that waited; None: the router said nothing
    running: int | None = None

    def row(self) -> dict[str, Any]:
        return {
            "at_s": self.at_s,
            "requests": self.requests,
            "failed": self.failed,
            "shed": self.shed,
            "ttft_p50": self.ttft.percentile(0.5),
            "ttft_p95": self.ttft.percentile(0.95),
            "tpot_p50": self.tpot.percentile(0.5),
            "tpot_p95": self.tpot.percentile(0.95),
            "output_tokens": self.output_tokens,
            "queue": self.queue,
            "running": self.running,
        }


class History(msgspec.Struct):
    buckets: list[Bucket] = []

    def ended(self, at_s: float, request: EndedRequest) -> None:
        bucket = self._bucket(at_s)
        bucket.requests += 1
        bucket.failed += request.failed
        bucket.shed += request.shed
        if request.ttft_s is not None:
            bucket.ttft.add(request.ttft_s)
        if request.tpot_s is not None:
            bucket.tpot.add(request.tpot_s)

    def given(self, at_s: float, tokens: int) -> None:
        self._bucket(at_s).output_tokens += tokens

    def levels(self, at_s: float, queue: int, running: int) -> None:
        bucket = self._bucket(at_s)
        bucket.queue, bucket.running = max(bucket.queue or 0, queue), max(bucket.running or 0, running)

    def report(self, now_s: float) -> dict[str, Any]:
        """As /moray/history answers. Buckets in which nobody told anything are not there."""
        begin = now_s - BUCKET_S * KEPT_BUCKETS
        rows = [bucket.row() for bucket in self.buckets if bucket.at_s > begin]
        return {"bucket_s": BUCKET_S, "since_s": rows[0]["at_s"] if rows else None, "rows": rows}

    def _bucket(self, at_s: float) -> Bucket:
        """What comes late counts with its own bucket while that is there, else with the oldest."""
        begin = int(at_s // BUCKET_S) * BUCKET_S
        for bucket in reversed(self.buckets):
            if bucket.at_s == begin:
                return bucket
            if bucket.at_s < begin:
                break
        else:
            if len(self.buckets) >= KEPT_BUCKETS:
                return self.buckets[0]
        made = Bucket(begin)
        self.buckets.append(made)
        self.buckets.sort(key=lambda bucket: bucket.at_s)
        del self.buckets[:-KEPT_BUCKETS]
        return made
