"""`moray bench telemetry`: its figures, and the collector that its traces go to."""

from __future__ import annotations

import httpx
import pytest

from cluster.settings import Settings
from ops.bench import telemetry
from ops.bench.sse_load import Load, Stream
from ops.bench.telemetry import OFF, SIDES, figures


def run(tok_s: float, gateway_us: float = 100.0) -> telemetry._Run:
    load = Load(10.0, [Stream(0.0, tokens=int(tok_s * 10))])
    return telemetry._Run(load, {"gateway": gateway_us * load.tokens / 1e6, "engine": 100 * load.tokens / 1e6})


def test_ratios_are_taken_within_a_round() -> None:
    """The machine is half as fast in the second round, for all sides."""
    runs = {OFF: [run(1000), run(500), run(1000)], "all": [run(990, 103.0), run(490, 104.0), run(1000, 102.0)]}
    told = figures(runs)
    assert told["throughput_ratio_all"] == pytest.approx(0.99)
    assert told["throughput_ratio_all_spread"] == pytest.approx([0.985, 0.995])
    assert (told["gateway_us_per_token_off"], told["gateway_us_per_token_all"]) == (100.0, 103.0)
    assert (told["cpu_us_per_token_off"], told["cpu_ratio_all"]) == (200.0, pytest.approx(1.015))
    assert (told["tok_s_off"], told["tok_s_all"]) == (1000, 990)
    assert not any(key.startswith("throughput_ratio_off") for key in told)


def test_sides_differ_in_settings_that_exist_and_the_default_is_one_of_them() -> None:
    assert next(iter(SIDES)) == OFF
    fields = Settings.model_fields["metrics"].annotation.model_fields  # type: ignore[union-attr]
    for settings in SIDES.values():
        assert {key.removeprefix("metrics.") for key in settings} <= fields.keys()
    assert SIDES["vllm"] == {} and fields["vllm"].default is True and fields["enabled"].default is True


def test_the_collector_takes_what_it_is_sent_over_one_connection() -> None:
    with telemetry._collector() as url, httpx.Client() as client:
        for size in (10, 1 << 20, 5):
            assert client.post(url, content=b"x" * size).status_code == 200
