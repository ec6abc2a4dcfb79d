"""Engine cores in processes of their own, and what they answer: the two halves of the tests that shard experts."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class Engines:
    """Engine cores one after another, forked from a process that imports vLLM once; see `engine_process.run`."""

    def __init__(self) -> None:
        self._sockets = tempfile.TemporaryDirectory(prefix="moray-test-")  # which vLLM's killed workers leave
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "engine_process.py")],
            env=os.environ | {"VLLM_RPC_BASE_PATH": self._sockets.name},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def answer(self, job: dict[str, Any]) -> dict[str, Any]:
        """Of an engine of its own."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        reply = self._process.stdout.readline()
        assert reply, "the process that forks engines has ended"
        answer: dict[str, Any] = json.loads(reply)
        return answer

    def close(self) -> None:
        """Kills what is left."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._sockets.cleanup()


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
