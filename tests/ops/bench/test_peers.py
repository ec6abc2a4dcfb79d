"""`moray bench peers`: its load, its figures, and what it writes for those that it starts."""

from __future__ import annotations

import itertools
import statistics

import pytest
from typer.testing import CliRunner

from ops.bench.peers.figures import Run, goodput, meets, of_side, ratios
from ops.bench.peers.load import LEAST_OUT, LONG_IN, OUT, arrival_times, bodies
from ops.bench.peers.sides import flags, haproxy_config
from ops.bench.sse_load import Load, Stream
from ops.cli import app
from ops.simulate.results import Slo

SLO = Slo(ttft_s=0.3, tpot_s=0.03)


def stream(ttft: float, tpot: float = 0.01, tokens: int = 11, error: str = "") -> Stream:
    first = 100.0 + ttft
    return Stream(100.0, first, first + tpot * (tokens - 1), 0 if error else tokens, error, late=0.001)


SHED = Stream(100.0, error="HTTP/1.1 429 Too Many Requests\r\n")
BROKEN = Stream(100.0, error="the stream ended early: None")


def run(*streams: Stream, offered_s: float = 2.0) -> Run:
    return Run(Load(4.0, list(streams)), offered_s, client_cpu=0.05, other_cpu=0.0)


# -- load


@pytest.mark.parametrize("seed", range(3))
def test_arrivals_are_as_many_as_asked_for_in_bursts(seed):
    times = arrival_times(2000, 10.0, seed)
    assert len(times) == 2000 and times == sorted(times) and times[0] >= 0 and times[-1] <= 10.0
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert 2.5 < statistics.stdev(gaps) / statistics.mean(gaps) < 6.0
    assert times == arrival_times(2000, 10.0, seed) != arrival_times(2000, 10.0, seed + 1)


def test_requests_are_of_mixed_sizes_and_share_no_beginning():
    made = bodies("tiny-r1", 1000, 7)
    prompts = [body["messages"][0]["content"] for body in made]
    long = [p for p in prompts if len(p) >= LONG_IN[0]]
    assert 0.1 < len(long) / len(made) < 0.2 and max(map(len, prompts)) <= LONG_IN[1]
    assert {LEAST_OUT, OUT.most} <= {body["max_tokens"] for body in made}
    assert all(LEAST_OUT <= body["max_tokens"] <= OUT.most and body["ignore_eos"] for body in made)
    whole_blocks = [p[:16] for p in prompts if len(p) >= 16]
    assert len(set(whole_blocks)) == len(whole_blocks)
    assert made == bodies("tiny-r1", 1000, 7)


# -- figures


def test_only_what_meets_both_limits_is_good():
    assert meets(stream(0.3, 0.03), SLO)
    assert not any(meets(s, SLO) for s in (stream(0.31), stream(0.1, 0.031), SHED, BROKEN))
    assert meets(stream(0.1, tokens=1), SLO)  # no further token, no time for it
    assert goodput(run(stream(0.1), stream(0.1), stream(0.4), SHED), SLO) == 1.0


def test_a_sides_figures():
    figures = of_side({"1x": [run(stream(0.1), stream(0.5), SHED, BROKEN), run(stream(0.1), stream(0.2))]}, SLO)["1x"]
    assert (figures["requests"], figures["shed"], figures["errors"]) == (6, 1, 1)
    assert figures["first_error"] == BROKEN.error
    assert figures["goodput"] == 0.75 and figures["attainment"] == 0.5
    assert figures["ttft_p50_ms"] == 150.0  # of the four that ended well
    assert figures["tpot_p50_ms"] == 10.0 and figures["tokens_per_s"] == 6
    assert (figures["client_late_p99_ms"], figures["client_cpu"], figures["other_cpu"]) == (1.0, 0.05, 0.0)


def test_ratios_are_taken_within_a_round():
    ours = [run(stream(0.1), stream(0.1)), run(stream(0.1), stream(0.1), stream(0.1))]
    theirs = [run(stream(0.2), stream(0.2)), run(stream(0.1), stream(0.4), stream(0.1))]
    found = ratios({"1x": ours}, {"1x": theirs}, SLO)["1x"]
    assert (found["goodput"], found["goodput_spread"]) == (1.25, [1.0, 1.5])
    assert (found["ttft_p50"], found["ttft_p50_spread"]) == (0.75, [0.5, 1.0])
    assert found["tokens_per_s"] == 1.0


def test_who_has_nothing_has_no_ratio():
    found = ratios({"1x": [run(stream(0.1))]}, {"1x": [run(SHED)]}, SLO)["1x"]
    assert found == dict.fromkeys(found) and "goodput" in found


# -- what it starts


def test_engine_arguments_become_vllms_flags():
    args = {"model": "/m", "max_num_seqs": 64, "enforce_eager": True, "enable_prefix_caching": False}
    assert flags(args) == ["--model", "/m", "--max-num-seqs", "64", "--enforce-eager", "--no-enable-prefix-caching"]


def test_haproxy_sends_to_the_server_with_the_fewest_open_requests():
    config = haproxy_config(8000, [8001, 8002])
    assert "  balance leastconn\n" in config and "  bind 127.0.0.1:8000\n" in config
    assert [line for line in config.splitlines() if line.startswith("  server ")] == [
        "  server engine0 127.0.0.1:8001",
        "  server engine1 127.0.0.1:8002",
    ]


def test_an_unknown_policy_is_refused_before_anything_starts():
    done = CliRunner().invoke(app, ["bench", "peers", "--policies", "best"])
    assert "round_robin" in str(done.exception)
