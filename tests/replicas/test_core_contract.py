"""What `replicas.core.EngineCore` promises, on all three cores: scripted, simulated, and vLLM's with a real model.

Greedy requests of exactly so many tokens; each core is built as a replica builds it, from an `EngineSpec`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from scripted_core import REFUSED, spec

from experts.tiny_r1 import checkpoint_path
from replicas.core import EngineCore, ReloadFailed, RequestRejected
from replicas.engine_host import build_core
from replicas.messages import Probe
from replicas.simulated_core import next_token

MAX_NUM_SEQS = 8
PROMPT = [40 + i for i in range(20)]
OTHERS = {"model": str(checkpoint_path()), "max_num_seqs": MAX_NUM_SEQS, "max_num_batched_tokens": 64}


class Driver:
    """A core, and how tests speak with it."""

    def __init__(self, core: EngineCore, vllm: bool, refused: Sequence[bytes]) -> None:
        self.core, self.vllm, self.refused = core, vllm, refused
        self.tokens: dict[tuple[int, str], list[int]] = {}  # by client and request
        self.reasons: dict[str, int] = {}
        self.finished: list[tuple[int, str]] = []

    def add(self, request_id: str, count: int, prompt: Sequence[int] = PROMPT, client: int = 0, delivered=()) -> None:
        if self.vllm:
            from replicas.vllm_core import greedy_request

            request: Any = greedy_request(request_id, prompt, count)
        else:
            request = [msgspec.msgpack.encode([request_id, list(prompt), None, {"max_tokens": count}])]
        assert self.core.add(client, request, delivered) == request_id

    def step(self) -> None:
        for client, frame, finished in self.core.step():
            self.finished += [(client, request_id) for request_id in finished]
            # EngineCoreOutputs, its outputs; each: request id, tokens, ..., finish reason
            for request_id, tokens, *rest in msgspec.msgpack.decode(frame[0])[1]:
                self.tokens.setdefault((client, request_id), []).extend(tokens)
                if len(rest) > 3 and rest[3] is not None:
                    self.reasons[request_id] = rest[3]

    def run(self) -> None:
        while self.core.has_work():
            self.step()


@pytest.fixture(scope="module")
def vllm_core() -> Iterator[EngineCore]:
    import os

    from replicas.engine_host import core_environment

    small = {"dtype": "float32", "enforce_eager": True, "kv_cache_memory_bytes": 64 << 20}
    engine = msgspec.structs.replace(
        spec(), engine_args=OTHERS | small, device="cpu", core="replicas.vllm_core:VllmCore", start_timeout_s=100.0
    )
    before = dict(os.environ)
    os.environ.update(core_environment(engine))
    core = build_core(engine)
    yield core
    core.shutdown()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(
    params=["scripted", "simulated", pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.timeout(300)])]
)
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    nonsense = [msgspec.msgpack.encode({"not": "a request"})]
    if request.param == "vllm":
        yield Driver(request.getfixturevalue("vllm_core"), True, nonsense)
    elif request.param == "scripted":
        refused = [msgspec.msgpack.encode(["refused", [REFUSED], None, {}])]
        core = build_core(spec(max_num_seqs=MAX_NUM_SEQS, model=str(checkpoint_path())))
        yield Driver(core, False, refused)
        core.shutdown()
    else:
        simulated = msgspec.structs.replace(spec(), engine_args=OTHERS, core="replicas.simulated_core:SimulatedCore")
        core = build_core(simulated)
        yield Driver(core, False, nonsense)
        core.shutdown()


def test_each_request_gets_its_tokens_where_it_belongs(driver):
    for number in range(6):
        driver.add(f"r{number}", 3 + number, client=number % 2)
    driver.run()
    assert {key: len(tokens) for key, tokens in driver.tokens.items()} == {
        (number % 2, f"r{number}"): 3 + number for number in range(6)
    }
    assert sorted(driver.finished) == sorted(driver.tokens) and set(driver.reasons.values()) == {1}  # LENGTH
    assert not driver.core.has_work()


def test_more_than_fit_wait_and_all_end(driver):
    for number in range(2 * MAX_NUM_SEQS):
        driver.add(f"w{number}", 4)
    driver.step()
    driver.step()
    load = driver.core.load()
    assert load.running <= driver.core.capacity.max_num_seqs == MAX_NUM_SEQS
    assert load.waiting >= MAX_NUM_SEQS and 0 <= load.kv_used <= 1
    driver.run()
    assert all(len(tokens) == 4 for tokens in driver.tokens.values()) and len(driver.tokens) == 2 * MAX_NUM_SEQS
    assert driver.core.load()[:2] == (0, 0)


def test_aborted_requests_are_not_heard_of_again(driver):
    for name in ("kept", "running"):
        driver.add(name, 12)
    driver.step()
    driver.add("fresh", 12)
    driver.core.abort(["running", "fresh", "nobody's"])
    driver.step()
    had = len(driver.tokens.get((0, "running"), []))
    driver.run()
    assert len(driver.tokens[0, "kept"]) == 12 and (0, "fresh") not in driver.tokens
    assert len(driver.tokens.get((0, "running"), [])) == had < 12 and driver.finished == [(0, "kept")]


def test_a_refused_request_harms_nobody(driver):
    driver.add("good", 5)
    with pytest.raises(RequestRejected):
        driver.core.add(0, driver.refused)
    driver.run()
    assert len(driver.tokens[0, "good"]) == 5


def test_a_moved_request_goes_on_as_it_would_have(driver):
    driver.add("whole", 10)
    driver.run()
    whole = driver.tokens[0, "whole"]
    driver.add("moved", 10, delivered=whole[:4])
    driver.run()
    assert driver.tokens[0, "moved"] == whole[4:] and driver.reasons["moved"] == 1


def test_its_work_is_counted(driver):
    before = driver.core.load().work
    driver.add("counted", 9, prompt=[70 + i for i in range(30)])
    driver.run()
    after = driver.core.load().work
    assert after.steps - before.steps >= 9 and after.step_s >= before.step_s
    assert after.prefill_tokens - before.prefill_tokens == 30
    assert after.decode_tokens - before.decode_tokens in (
        8,
        9,
    )  # the first token comes with the prefill, except scripted


def test_it_tells_what_it_is(driver):
    capacity = driver.core.capacity
    assert capacity.kv_tokens >= capacity.max_model_len > 0 and capacity.kv_tokens % capacity.block_tokens == 0
    assert isinstance(driver.core.placement(), tuple)
    driver.core.abort([])
    assert not driver.core.has_work()


def another_version(driver: Driver, folder: Path) -> str:
    """A directory whose weights give other answers."""
    directory = folder / "v2"
    if not driver.vllm:
        directory.mkdir()
        return str(directory)
    from safetensors.numpy import load_file, save_file

    shutil.copytree(checkpoint_path(), directory)
    [file] = directory.glob("*.safetensors")
    tensors = load_file(file)
    save_file({name: tensor[..., ::-1].copy() for name, tensor in tensors.items()}, file)
    return str(directory)


def answer(driver: Driver, request_id: str) -> list[int]:
    driver.add(request_id, 12)
    driver.run()
    return driver.tokens.pop((0, request_id))


def test_other_weights_give_other_answers_and_the_old_ones_their_own_again(driver, tmp_path):
    first, v1, v2 = answer(driver, "before"), str(checkpoint_path()), another_version(driver, tmp_path)
    if driver.vllm:
        driver.core.checksum = driver.core._digest()  # as if it had been started with a version
    checksum = driver.core.checksum
    assert driver.core.reload(v2) == driver.core.checksum != checksum
    second = answer(driver, "v2")
    assert second != first and driver.core.load().running == 0
    with pytest.raises(ReloadFailed) as failed:
        driver.core.reload(str(tmp_path / "missing"))
    assert not failed.value.touched and answer(driver, "still v2") == second
    with pytest.raises(ReloadFailed, match="not another") as failed:
        driver.core.reload(v2, expected="another")
    assert failed.value.touched
    driver.core.reload(v1, expected=checksum)
    assert driver.core.checksum == checksum and answer(driver, "back") == first


def test_probes_are_answered_as_requests_are(driver):
    prompts = [PROMPT, PROMPT[:7]]
    probed = driver.core.probe([Probe(prompt=tuple(prompt), max_tokens=6) for prompt in prompts])
    for number, (prompt, (tokens, logprobs)) in enumerate(zip(prompts, probed, strict=True)):
        driver.add(f"as{number}", 6, prompt)
        driver.run()
        assert 0 < len(tokens) <= 6 and list(tokens) == driver.tokens[0, f"as{number}"][: len(tokens)]
        assert logprobs == ()
    assert not driver.core.has_work()


# -- the simulated core's own ------------------------------------------------------------------------------------------


def test_a_simulated_step_takes_the_time_that_the_model_says_and_stop_tokens_end():
    core = build_core(msgspec.structs.replace(spec(), engine_args=OTHERS, core="replicas.simulated_core:SimulatedCore"))
    driver = Driver(core, False, [])
    tokens = list(PROMPT)
    for _ in range(30):
        tokens.append(next_token(tokens))
    made = tokens[len(PROMPT) :]
    stop = made[7]
    request = ["s", PROMPT, None, {"max_tokens": 30, "stop_token_ids": [stop], "min_tokens": made.index(stop) + 1}]
    core.add(0, [msgspec.msgpack.encode(request)])
    driver.run()
    assert driver.tokens[0, "s"] == made[: made.index(stop) + 1] and driver.reasons == {"s": 0}
    assert core.load().running == 0 and core.load().work.step_s > 0.004 * made.index(stop)
