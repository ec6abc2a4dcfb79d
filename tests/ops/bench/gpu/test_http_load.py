"""The load generator in several processes, against servers that only stream."""

import pytest

from ops.bench.direct_engine import BenchFailed
from ops.bench.gpu import http_load
from ops.bench.gpu.http_load import HttpLoad, Part, part_of, put_together
from ops.bench.gpu.null_server import null_servers
from ops.bench.sse_load import Load, Stream


def bodies(count, tokens):
    return [{"messages": [{"role": "user", "content": "x" * 5000}], "max_tokens": tokens} for _ in range(count)]


@pytest.fixture(scope="module")
def url():
    with null_servers(2) as url:
        yield url


def test_every_request_is_sent_once_and_every_token_counted(url):
    run = HttpLoad(3).run(url, bodies(20, 7), 8)
    assert (run.requests, run.tokens, run.errors) == (20, 140, [])
    assert len(run.ttft_s) == len(run.tpot_s) == 20
    assert all(0 < ttft <= run.seconds for ttft in run.ttft_s)
    assert 0 < run.client_cpu_share < 1.5


def test_one_at_a_time_is_one_process(url):
    run = HttpLoad(3).run(url, bodies(4, 3), 1)
    assert (run.requests, run.tokens) == (4, 12)
    assert sum(run.ttft_s) <= run.seconds


def test_what_does_not_end_is_ended(url, monkeypatch):
    monkeypatch.setattr(http_load, "LIMIT_S", 1.0)
    with pytest.raises(BenchFailed, match="took too long"):
        HttpLoad(1).run(url, bodies(1, 100_000_000), 1)


def test_a_server_that_is_not_there_is_an_error_of_each_request():
    run = HttpLoad(2).run("http://127.0.0.1:9", bodies(4, 3), 4)
    assert (run.requests, run.tokens, len(run.errors)) == (0, 0, 4)
    assert "first_error" in run.summary()


def test_parts_are_put_together_on_one_clock():
    run = put_together([Part([(10.0, 11.0, 14.0, 4)], [], 0.2), Part([(10.5, 12.0, 13.0, 1)], ["late"], 0.6)], 9.0)
    assert (run.seconds, run.requests, run.tokens, run.client_cpu_share) == (4.0, 2, 5, 0.6)
    assert run.ttft_s == [1.0, 1.5]
    assert run.tpot_s == [1.0]  # one token has no time between tokens
    assert run.summary()["errors"] == 1


def test_a_failed_request_gives_no_figures():
    load = Load(2.0, [Stream(0.0, 0.5, 1.0, 3), Stream(0.0, 0.4, 0.6, 0, error="cut off")])
    part = part_of(load, 1.0)
    assert (part.streams, part.errors, part.cpu_share) == ([(0.0, 0.5, 1.0, 3)], ["cut off"], 0.5)
