"""The search over engines that are made up: what a setting carries is a formula."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from ops.tune.search import ATTAINED, CHALLENGE, PRECISION, Option, Trial, found, next_trial

OPTIONS = (
    Option("batched_tokens", (8192, 4096, 2048, 1024)),
    Option("seqs", (1024, 512, 256, 128)),
    Option("kv", ("auto", "fp8"), live=1),
)
MOST_TRIALS = 200


def tune(capacity, first_rate=10.0, options=OPTIONS, trials=()):
    """`capacity(setting)`: what it carries; None: it does not run."""
    trials = list(trials)
    while (wanted := next_trial(options, trials, first_rate)) is not None:
        setting, rate = wanted
        carries = capacity(setting)
        trials.append(Trial(setting, rate, None if carries is None else 1.0 if rate <= carries else 0.5))
        assert len(trials) < MOST_TRIALS
    return trials


def values_of(option):
    return st.fixed_dictionaries({value: st.floats(0.5, 2.0) for value in option.values})


factors = st.fixed_dictionaries({option.name: values_of(option) for option in OPTIONS})


def product(factors, scale):
    def capacity(setting):
        carries = scale
        for name, value in setting.items():
            carries *= factors[name][value]
        return carries

    return capacity


@given(factors, st.floats(1.0, 500.0))
def test_it_finds_what_carries_most_where_options_do_not_depend_on_each_other(factors, scale):
    capacity = product(factors, scale)
    result = found(OPTIONS, tune(capacity))
    best = scale
    for option in OPTIONS:
        best *= max(factors[option.name].values())
    # Each option may be left at a value that is as good within the challenge and the precision.
    assert result.capacity >= best / (CHALLENGE * PRECISION) ** len(OPTIONS)
    assert capacity(result.best) >= result.capacity


@given(factors, st.floats(1.0, 500.0))
def test_it_never_ends_below_where_it_began(factors, scale):
    capacity = product(factors, scale)
    result = found(OPTIONS, tune(capacity))
    assert result.capacity >= result.first_capacity
    assert capacity(result.first) / PRECISION <= result.first_capacity <= capacity(result.first)


@given(factors, st.floats(1.0, 500.0), st.data())
def test_cut_off_anywhere_it_goes_on_as_if_it_had_not_been(factors, scale, data):
    capacity = product(factors, scale)
    whole = tune(capacity)
    cut = data.draw(st.integers(0, len(whole)))
    assert tune(capacity, trials=whole[:cut]) == whole


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=MOST_TRIALS), st.floats(0.1, 1000))
def test_noise_alone_ends_it_too(attained, first_rate):
    trials = []
    while (wanted := next_trial(OPTIONS, trials, first_rate)) is not None:
        trials.append(Trial(*wanted, attained[len(trials)]))
        assert len(trials) < MOST_TRIALS
    result = found(OPTIONS, trials)
    assert result.capacity >= result.first_capacity


def test_a_setting_that_does_not_run_is_left():
    trials = tune(lambda setting: None if setting["kv"] == "fp8" else 50.0 if setting["seqs"] == 512 else 40.0)
    assert sum(trial.setting["kv"] == "fp8" for trial in trials) <= 2
    assert found(OPTIONS, trials).best == {"batched_tokens": 8192, "seqs": 512, "kv": "auto"}


def test_a_worse_setting_is_dropped_after_one_trial():
    trials = tune(lambda setting: 100.0 if setting["seqs"] == 1024 else 60.0)
    tried = [tuple(trial.setting.items()) for trial in trials if trial.setting["seqs"] != 1024]
    assert len(tried) == len(set(tried)) > 0


def test_where_nothing_is_carried_it_ends():
    trials = tune(lambda setting: 0.0)
    assert found(OPTIONS, trials).capacity == 0.0


def test_what_needs_a_restart_is_tried_last():
    names = [trial.setting["kv"] for trial in tune(lambda setting: 100.0, options=OPTIONS[::-1])]
    assert names == sorted(names)


def test_a_rate_is_carried_at_the_very_share():
    trial = Trial({}, 1.0, ATTAINED)
    assert trial.carried
    assert not replace(trial, attained=ATTAINED - 1e-9).carried
    assert not replace(trial, attained=None).carried
