"""The baseline: one engine core driven directly, in a process of its own, with nothing around it.

`python -m ops.bench.direct_engine SPEC_JSON PARENT_PID` reads one `Round` as JSON a line and answers each with
a `Result`; `DirectEngine` starts it.
"""

import os
import sys
import time

import msgspec

from experts.linux import die_with_parent
from ops.child import Child
from ops.errors import UserError
from replicas.engine_host import build_core, core_environment
from replicas.engine_spec import EngineSpec

_LIMIT_S = 1800.0  # for its start, and for a round


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
    """This module in a process of its own, as a context manager. Died: it did not start, ended, or hung."""

    def __init__(self, spec_json: str) -> None:
        self._spec_json = spec_json

    def __enter__(self) -> "DirectEngine":
        self._child = Child("the engine alone", "ops.bench.direct_engine", [self._spec_json])
        try:
            self._child.hear(_LIMIT_S)
        except BaseException:
            self._child.end()
            raise
        return self

    def run(self, work: Round) -> Result:
        return msgspec.json.decode(self._child.ask(msgspec.json.encode(work), _LIMIT_S), type=Result)

    def __exit__(self, *_: object) -> None:
        self._child.end()


def main() -> None:
    die_with_parent(int(sys.argv[2]))
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM logs to the standard output, which is ours
    spec = msgspec.json.decode(sys.argv[1], type=EngineSpec)
    os.environ.update(core_environment(spec))
    core = build_core(spec)
    from replicas.vllm_core import VllmCore, greedy_request

    assert isinstance(core, VllmCore)
    counted = True

    told.write("ready\n")
    told.flush()
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
        told.write(msgspec.json.encode(result).decode() + "\n")
        told.flush()


if __name__ == "__main__":
    main()
