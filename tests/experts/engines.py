"""Engine cores in processes of their own, and what they answer: the two halves of the tests that shard experts."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@contextmanager
def engines(jobs: list[dict[str, Any]]) -> Iterator[Iterator[dict[str, Any]]]:
    """One reply a job, in turn; see `engine_process.run` for both. What is left is killed at the end."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "engine_process.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps(jobs))
        process.stdin.close()
        process.stdout.readline()  # the import's time
        yield map(json.loads, process.stdout)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def differences(one: dict[str, Any], sharded: dict[str, Any], tolerance: float = 1e-3) -> list[str]:
    """Why these two runs are not the same model; empty when every token is equal and every logprob within tolerance."""
    found = []
    for index, (expected, got) in enumerate(zip(one["tokens"], sharded["tokens"], strict=True)):
        if expected != got:
            at = next(i for i, (a, b) in enumerate(zip(expected, got, strict=True)) if a != b)
            found.append(f"prompt {index}: token {at} is {got[at]}, not {expected[at]}")
            continue
        gap = max(abs(a - b) for a, b in zip(one["logprobs"][index], sharded["logprobs"][index], strict=True))
        if gap > tolerance:
            found.append(f"prompt {index}: a logprob is off by {gap:.2g}")
    return found
