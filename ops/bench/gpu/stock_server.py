"""vLLM's own HTTP server, as `vllm serve` starts it: its app over `AsyncLLM`, the engine core in its own process.

`python -m ops.bench.gpu.stock_server PARENT_PID FLAGS…` is that server, and ends with its parent.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from experts.linux import die_with_parent
from ops.bench.direct_engine import BenchFailed
from ops.child import kill_group

# What `vllm serve` runs for one API server; the command itself looks for a distribution named vllm, which a CPU lacks.
_SERVER = "vllm.entrypoints.launchers.api_server.entry"


class StockServer:
    """A context manager. BenchFailed: it did not come up within `limit_s` seconds."""

    def __init__(self, flags: list[str], port: int, log: Path, limit_s: float) -> None:
        self._command = [sys.executable, "-m", "ops.bench.gpu.stock_server", str(os.getpid()), *flags]
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        self._limit_s = limit_s
        self.load_s = 0.0  # from the process's start to its first healthy answer

    def __enter__(self) -> StockServer:
        began = time.monotonic()
        # A vLLM that is killed leaves sockets, and the file by which its ranks meet.
        self._files = TemporaryDirectory(prefix="moray-bench-", ignore_cleanup_errors=True)
        env = os.environ | {"TMPDIR": self._files.name}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=env, start_new_session=True)
        try:
            while not self._healthy():
                ended = self._process.poll() is not None
                if ended or time.monotonic() - began > self._limit_s:
                    what = "ended" if ended else f"was not ready within {self._limit_s:.0f} s"
                    raise BenchFailed(f"vLLM's server {what}:\n{self._log.read_text(errors='replace')[-3000:]}")
                time.sleep(0.2)
        except BaseException:
            self.__exit__()
            raise
        self.load_s = time.monotonic() - began
        return self

    def _healthy(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=2, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def __exit__(self, *_: object) -> None:
        kill_group(self._process)
        self._files.cleanup()


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    sys.argv = [_SERVER, *sys.argv[2:]]
    runpy.run_module(_SERVER, run_name="__main__")
