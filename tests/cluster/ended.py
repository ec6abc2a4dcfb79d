"""A request that ended well, as the journal has it."""

from __future__ import annotations

from cluster.journal import Ended

RECORD = Ended(
    request_id="r",
    model="m",
    version="v1",
    tenant="ann",
    priority=0,
    replica="a",
    prompt_tokens=10,
    cached_tokens=4,
    output_tokens=5,
    arrived_at=100.0,
    queued_at=100.01,
    granted_at=100.5,
    submitted_at=100.502,
    first_token_at=101.0,
    last_token_at=101.4,
    ended_at=101.4,
    ending="DONE",
    resumes=0,
    longest_gap_s=0.0,
    ttft_slo_s=None,
)
