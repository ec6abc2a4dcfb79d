"""What is chosen among, and what a choice means for an engine."""

from ops.tune.search import changes
from ops.tune.space import (
    CHUNK,
    GRAPHS,
    SEQS,
    TOKENS,
    Default,
    Load,
    engine_args,
    exact,
    load_for,
    more_graphs,
    own_graphs,
    refused,
)
from ops.tune.space import options as options_for
from ops.tune.space import settings as settings_for

OWN = (1, 2, 4, 8, 256)
GPU = Default(batched_tokens=2048, seqs=128, graphs=OWN)


def first(options, **changed):
    return {option.name: option.values[0] for option in options} | changed


def test_the_default_comes_first_and_no_value_twice():
    for default in (GPU, Default(8192, 1024, 256), Default(3000, 77)):
        for option in options_for(default, 512, on_gpu=True, fp8_kv=True, kernels="/k"):
            assert len(set(option.values)) == len(option.values) > 1
        options = options_for(default, 512, on_gpu=True)
        assert (first(options)[TOKENS], first(options)[SEQS], first(options)[CHUNK]) == default[:3]
        assert first(options).get(GRAPHS) is None


def test_what_changes_answers_is_tried_only_if_asked_for():
    names = {option.name for option in options_for(GPU, 512, on_gpu=True)}
    assert "kv_cache_dtype" not in names
    assert "kv_cache_dtype" in {option.name for option in options_for(GPU, 512, on_gpu=True, fp8_kv=True)}


def test_a_cpu_has_no_graphs():
    options = options_for(Default(1024, 64), 64, on_gpu=False)
    assert [option.name for option in options] == [TOKENS, SEQS, CHUNK, "async_scheduling"]
    assert first(options)[SEQS] == 64


def test_limits_that_fit_what_is_loaded_need_no_load():
    options = options_for(GPU, 512, on_gpu=True)
    default = load_for(options, first(options))
    assert default == Load(2048, 128, graphs=more_graphs(OWN)[-1])
    assert default.serves(load_for(options, first(options, **{GRAPHS: more_graphs(OWN)[0]})))
    assert default.serves(load_for(options, first(options, **{TOKENS: 1024, CHUNK: 128})))


def test_higher_limits_are_loaded_once_for_all():
    options = options_for(GPU, 512, on_gpu=True)
    raised = load_for(options, first(options, **{TOKENS: 4096}))
    assert (raised.batched_tokens, raised.seqs) == (16384, 1024)
    assert raised.serves(load_for(options, first(options, **{TOKENS: 16384})))
    assert raised.serves(load_for(options, first(options)))
    assert not load_for(options, first(options)).serves(raised)
    assert exact(first(options, **{TOKENS: 4096})) == Load(4096, 128)
    assert exact(first(options, **{GRAPHS: (1, 2, 600)})) == Load(2048, 128, graphs=(1, 2, 600))
    assert not Load(2048, 128).serves(Load(2048, 128, graphs=(1, 2, 600)))


def test_what_cannot_change_live_is_loaded():
    options = options_for(GPU, 512, on_gpu=True)
    sync = load_for(options, first(options, async_scheduling=False))
    assert not load_for(options, first(options)).serves(sync)
    assert not sync.serves(load_for(options, first(options)))


def test_a_step_holds_its_sequences():
    assert refused({TOKENS: 512, SEQS: 1024})
    assert not refused({TOKENS: 1024, SEQS: 1024})


def test_arguments_keep_what_was_given():
    sizes = (1, 2, 4)
    base = {"model": "/m", TOKENS: 9, "compilation_config": {"mode": 3, "max_cudagraph_capture_size": 512}}
    args = engine_args(base, Load(1024, 64, (("block_size", 32), ("tuned_kernels", "/k")), sizes))
    assert args == {
        "model": "/m",
        TOKENS: 1024,
        SEQS: 64,
        "block_size": 32,
        "compilation_config": {"mode": 3, GRAPHS: [1, 2, 4]},
    }
    assert engine_args(base, Load(9, 9))["compilation_config"] == base["compilation_config"]


def test_settings_of_a_choice():
    setting = {TOKENS: 4096, SEQS: 256, CHUNK: 0, "async_scheduling": False, GRAPHS: None, "tuned_kernels": "/k"}
    assert settings_for(setting, {}) == {
        "engine.max_num_batched_tokens": 4096,
        "engine.max_num_seqs": 256,
        "engine.extra.async_scheduling": False,
        "engine.tuned_kernels": "/k",
    }
    found = settings_for(setting | {CHUNK: 128, GRAPHS: (1, 2)}, {"compilation_config": {"mode": 0}})
    assert found["engine.extra.long_prefill_token_threshold"] == 128
    assert found["engine.extra.compilation_config"] == {"mode": 0, GRAPHS: [1, 2]}


def test_an_engine_has_graphs_as_vllm_decides():
    by_itself = own_graphs({}, 1024)
    assert (by_itself[:5], by_itself[-2:], len(by_itself)) == ((1, 2, 4, 8, 16), (496, 512), 51)
    assert own_graphs({SEQS: 128})[-1] == own_graphs({}, 128)[-1] == 256
    assert own_graphs({"compilation_config": {GRAPHS: [8, 1]}}) == (1, 8)
    assert own_graphs({"compilation_config": {"max_cudagraph_capture_size": 40}}) == (1, 2, 4, 8, 16, 24, 32, 40)
    assert own_graphs({"enforce_eager": True}) == own_graphs({"compilation_config": {"cudagraph_mode": "NONE"}}) == ()


def test_more_graphs_are_the_own_ones_and_larger_ones():
    for own in (OWN, own_graphs({}), (1, 1024)):
        for sizes in more_graphs(own):
            assert sizes[: len(own)] == own
            assert list(sizes) == sorted(set(sizes))
    assert [sizes[-1] for sizes in more_graphs(OWN)] == [1024, 2048]
    assert [sizes[-1] for sizes in more_graphs((1, 1024))] == [2048]
    assert more_graphs(()) == more_graphs((1, 4096)) == ()


def test_what_needs_no_load_is_tried_before_what_does():
    tokens = next(option for option in options_for(Default(4096, 128), 512, on_gpu=True) if option.name == TOKENS)
    assert tokens.values == (4096, 2048, 1024, 8192, 16384)
    tried = [value for name, value in changes(options_for(Default(4096, 128), 512, on_gpu=True)) if name != SEQS]
    assert tried.index(8192) > tried.index(256)  # of CHUNK
