"""The file that a search goes on from, cut off anywhere."""

import pytest

from ops.errors import UserError
from ops.tune.search import Option, Trial
from ops.tune.state import State

SEARCH = {"model": "m", "slo": {"ttft_s": 1.0}, "prompt": 512}
OPTIONS = (Option("max_num_seqs", (64, 32)), Option("cudagraph_capture_sizes", (None, (1, 2, 4)), live=1))
TRIALS = [
    Trial({"max_num_seqs": 64, "cudagraph_capture_sizes": None}, 2.0, 0.95),
    Trial({"max_num_seqs": 64, "cudagraph_capture_sizes": (1, 2, 4)}, 2.5, None),
]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "state" / "search.jsonl"


def written(file):
    state = State(file, SEARCH)
    state.begin(OPTIONS, 2.0)
    for trial in TRIALS:
        state.add(trial, counted=10)
    state.add(TRIALS[0], check=True)
    return state


def test_it_is_read_as_it_was_written(file):
    written(file)
    again = State(file, SEARCH)
    assert (again.options, again.first_rate) == (OPTIONS, 2.0)
    assert again.trials == TRIALS
    assert again.checks == TRIALS[:1]


def test_cut_off_at_any_byte_it_goes_on(file):
    written(file)
    data = file.read_bytes()
    for end in range(len(data)):
        file.write_bytes(data[:end])
        cut = State(file, SEARCH)
        assert cut.trials == TRIALS[: len(cut.trials)]
        for trial in TRIALS[len(cut.trials) :]:
            cut.add(trial)
        assert State(file, SEARCH).trials == TRIALS


def test_another_search_is_refused(file):
    written(file)
    with pytest.raises(UserError, match="prompt was 512, now 256"):
        State(file, SEARCH | {"prompt": 256})


@pytest.mark.parametrize("text", ['{"what": "else"}\n', "no JSON\n", "[1]\n"])
def test_another_file_is_refused_and_left_as_it_is(file, text):
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(UserError, match="no state of a search"):
        State(file, SEARCH)
    assert file.read_text() == text
