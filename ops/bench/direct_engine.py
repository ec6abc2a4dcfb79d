"""The baseline: one engine core driven directly, in this process, with nothing around it.

`python -m ops.bench.direct_engine SPEC_JSON` reads one `Round` as JSON a line and answers each with a `Result`.
"""

import os
import sys
import time

import msgspec

from replicas.engine_host import build_core, core_environment
from replicas.engine_spec import EngineSpec


class Round(msgspec.Struct, frozen=True):
    """Prompts to run `concurrency` at a time, each to exactly its number of `output_tokens`."""

    prompts: list[list[int]]
    output_tokens: list[int]
    concurrency: int


class Result(msgspec.Struct, frozen=True):
    """Seconds of wall clock and of CPU (all threads); `ttft_s` is each prompt's, meaningful at concurrency 1."""

    seconds: float
    cpu_s: float
    tokens: int
    ttft_s: list[float]


def main() -> None:
    spec = msgspec.json.decode(sys.argv[1], type=EngineSpec)
    os.environ.update(core_environment(spec))
    core = build_core(spec)
    from replicas.vllm_core import greedy_request

    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for number, line in enumerate(sys.stdin):
        work = msgspec.json.decode(line, type=Round)
        requests = [
            greedy_request(f"{number}-{i}", prompt, tokens)
            for i, (prompt, tokens) in enumerate(zip(work.prompts, work.output_tokens, strict=True))
        ]
        requests.reverse()
        ttft: list[float] = []
        added: dict[str, float] = {}
        began, cpu = time.perf_counter(), time.process_time()
        in_flight = 0
        while requests or in_flight:
            while requests and in_flight < work.concurrency:
                added[core.add(0, requests.pop())] = time.perf_counter()
                in_flight += 1
            for output in core.step():
                if work.concurrency == 1 and added:
                    ttft.append(time.perf_counter() - added.popitem()[1])
                in_flight -= len(output.finished)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        result = Result(seconds, cpu, sum(work.output_tokens), ttft)
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
