"""The baseline: one engine core driven directly, in a process of its own, with nothing around it.

`python -m ops.bench.direct_engine SPEC_JSON` reads one `Round` as JSON a line and answers each with a `Result`;
`DirectEngine` starts it.
"""

import os
import subprocess
import sys
import tempfile
import time

import msgspec

from ops.errors import UserError
from replicas.engine_host import build_core, core_environment
from replicas.engine_spec import EngineSpec


class BenchFailed(UserError):
    """The measurement could not be made, or not honestly."""


class Round(msgspec.Struct, frozen=True):
    """Prompts to run `concurrency` at a time, each to exactly its number of `output_tokens`."""

    prompts: list[list[int]]
    output_tokens: list[int]
    concurrency: int
    count_experts: bool = True  # have the engine count what each expert is given, as a replica does


class Result(msgspec.Struct, frozen=True):
    """Seconds of wall clock and of CPU (all threads). `ttft_s` is each prompt's, `steps_s` each engine step's: both at
    concurrency 1 only. `routed`: tokens that each expert was given, [MoE layer][expert]; to ask took `routed_s`."""

    seconds: float
    cpu_s: float
    tokens: int
    ttft_s: list[float]
    steps_s: list[float] = []
    routed: list[list[int]] | None = None
    routed_s: float = 0.0


class DirectEngine:
    """This module in a process of its own, as a context manager."""

    def __init__(self, spec_json: str) -> None:
        self._command = [sys.executable, "-m", "ops.bench.direct_engine", spec_json]

    def __enter__(self) -> "DirectEngine":
        self._log = tempfile.TemporaryFile("w+")  # a pipe that nobody reads would fill and stop the engine
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        while (line := self._line()) != "ready\n":
            if not line:
                self._log.seek(0)
                raise BenchFailed(f"the engine alone did not start:\n{self._log.read()[-2000:]}")
        return self

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def run(self, work: Round) -> Result:
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(work).decode() + "\n")
        self._process.stdin.flush()
        return msgspec.json.decode(self._line(), type=Result)

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


def main() -> None:
    spec = msgspec.json.decode(sys.argv[1], type=EngineSpec)
    os.environ.update(core_environment(spec))
    core = build_core(spec)
    from replicas.vllm_core import VllmCore, greedy_request

    assert isinstance(core, VllmCore)
    counted = True

    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for number, line in enumerate(sys.stdin):
        work = msgspec.json.decode(line, type=Round)
        requests = [
            greedy_request(f"{number}-{i}", prompt, tokens)
            for i, (prompt, tokens) in enumerate(zip(work.prompts, work.output_tokens, strict=True))
        ]
        requests.reverse()
        if work.count_experts != counted:
            core.count_routed_tokens(work.count_experts)
            counted = work.count_experts
        before = core.routed_tokens()
        ttft: list[float] = []
        steps: list[float] = []
        added: dict[str, float] = {}
        began, cpu = time.perf_counter(), time.process_time()
        in_flight = 0
        while requests or in_flight:
            while requests and in_flight < work.concurrency:
                added[core.add(0, requests.pop())] = time.perf_counter()
                in_flight += 1
            stepped = time.perf_counter()
            outputs = core.step()
            if work.concurrency == 1:
                steps.append(time.perf_counter() - stepped)
            for output in outputs:
                if work.concurrency == 1 and added:
                    ttft.append(time.perf_counter() - added.popitem()[1])
                in_flight -= len(output.finished)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        asked = time.perf_counter()
        after = core.routed_tokens()
        routed_s = time.perf_counter() - asked
        routed = None if before is None or after is None else (after - before).tolist()
        result = Result(seconds, cpu, sum(work.output_tokens), ttft, steps, routed, routed_s)
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
