"""Engine cores, each in a process of its own: reads jobs as lines of JSON from stdin, writes what came of each as one.

Not a test. Job: spec (an EngineSpec), prompts (token ids), output_tokens, beside (whether another stream runs beside
each), refuse (token ids that a gateway's front end is asked to take). The answer: kv_tokens, answers (tokens, logprobs,
steps to the first token and in all, prompt by prompt), refused (the front end's sentence), or failed (why there is no
engine). One process imports vLLM once (10 s) and forks a child per job; all jobs have the first one's environment.
"""

import json
import os
import sys
import traceback
from typing import Any, TextIO

import msgspec

from replicas.engine_host import core_environment
from replicas.engine_spec import EngineSpec


def add(core: Any, request_id: str, prompt: list[int], output_tokens: int) -> None:
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.serial_utils import MsgpackEncoder

    request = EngineCoreRequest(
        request_id=request_id,
        prompt_token_ids=prompt,
        mm_features=None,
        sampling_params=SamplingParams(temperature=0, max_tokens=output_tokens, logprobs=0, ignore_eos=True),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
    core.add(0, [bytes(part) for part in MsgpackEncoder().encode(request)])


def answer(core: Any, prompt: list[int], output_tokens: int, beside: bool) -> dict[str, Any]:
    """Greedy tokens and their log probabilities, and the engine steps that they took."""
    from vllm.v1.engine import EngineCoreOutputs
    from vllm.v1.serial_utils import MsgpackDecoder

    decode = MsgpackDecoder(EngineCoreOutputs).decode
    tokens: list[int] = []
    logprobs: list[float] = []
    if beside:
        add(core, "beside", [65] * 8, 512)
        core.step()
    add(core, "it", prompt, output_tokens)
    before, first = core.load().work.steps, 0
    while core.has_work() and len(tokens) < output_tokens:
        for _, frame, _ in core.step():
            for output in (each for each in decode(frame).outputs if each.request_id == "it"):
                first = first or core.load().work.steps - before
                tokens += output.new_token_ids
                logprobs += [float(row[0]) for row in output.new_logprobs.logprobs]
    steps = core.load().work.steps - before
    core.abort(["beside"])
    return {"tokens": tokens, "logprobs": logprobs, "first": first, "steps": steps}


def refusal(core: Any, prompt: list[int]) -> str:
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.input_processor import InputProcessor

    front_end = InputProcessor(core._core.vllm_config)
    try:
        front_end.process_inputs("1", {"prompt_token_ids": prompt}, SamplingParams(max_tokens=1), ("generate",))
    except VLLMValidationError as error:
        return str(error)
    return ""


def run(job: dict[str, Any], reply: TextIO) -> None:
    """One engine, from its specification to its answers."""
    from replicas.vllm_core import VllmCore

    try:
        core = VllmCore(msgspec.convert(job["spec"], EngineSpec))
    except ValueError as error:
        found: dict[str, Any] = {"failed": str(error)}
    else:
        found = {
            "kv_tokens": core.capacity.kv_tokens,
            "answers": [answer(core, prompt, job["output_tokens"], job["beside"]) for prompt in job["prompts"]],
            "refused": refusal(core, job["refuse"]) if "refuse" in job else "",
        }
    reply.write(json.dumps(found) + "\n")
    reply.flush()


def main() -> None:
    reply = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM logs to stdout
    for number, line in enumerate(sys.stdin):
        job = json.loads(line)
        if not number:
            os.environ.update(core_environment(msgspec.convert(job["spec"], EngineSpec)))
            import replicas.vllm_core  # noqa: F401, for the children; it reads the environment
        child = os.fork()
        if child == 0:
            try:
                run(job, reply)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)  # no orderly shutdown: vLLM's takes seconds
        if os.waitpid(child, 0)[1] != 0:
            sys.exit("The engine's process failed.")


if __name__ == "__main__":
    main()
