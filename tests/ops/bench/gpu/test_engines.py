"""One engine in three sides' words."""

from pathlib import Path

from cluster.app import engine_spec
from cluster.config import load
from cluster.settings import Machine
from ops.bench.gpu.batching import output_lengths
from ops.bench.gpu.engines import Engine
from ops.bench.gpu.scale import FULL, TINY

ENGINE = Engine(Path("/models/x"), "stand-in", dict(FULL.args) | {"enforce_eager": False})


def settings_of(engine):
    return load(None, {}, engine.settings({}), Machine(cpus=16, gpus=1), to_run=False).settings


def test_morays_engine_has_the_very_arguments_of_the_raw_one():
    for engine in (ENGINE, Engine(Path("/models/x"), "stand-in", TINY.args)):
        spec = engine_spec(settings_of(engine))
        assert engine.llm().items() <= spec.engine_args.items()
        assert (spec.model, spec.shards) == ("stand-in", 1)


def test_flags_are_those_of_vllms_server():
    flags = ENGINE.flags(1234)
    assert flags[flags.index("--max-num-seqs") + 1] == "512"
    assert "--enable-prefix-caching" in flags and "--no-enforce-eager" in flags
    assert flags[flags.index("--compilation-config") + 1].startswith('{"cudagraph_capture_sizes": [1,')


def test_a_tiny_run_asks_for_less_of_the_same():
    assert FULL.work(512, 512, 128).name == "512x512x128c512"
    assert TINY.work(512, 512, 128).name == "16x128x32c16"
    assert TINY.work(24, 512, 16, 1).concurrency == 1


def test_answers_are_as_long_as_conversations_have_them():
    lengths = output_lengths(4000, 1)
    assert min(lengths) >= 8 and max(lengths) <= 600
    assert 170 < sum(lengths) / len(lengths) < 210
