"""Which tiles there are, and which of them are timed next: against made-up times."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.errors import UserError
from ops.tune import kernel_tuning
from ops.tune.kernel_timing import Timed, Where
from ops.tune.kernels import BATCHES, ROUNDS, WORTH, Experts, Run, Tile, chosen, next_run, tiles

QWEN = Experts(number=128, width=768, hidden=2048, top_k=8)
A100, H200 = 166_912, 232_448  # bytes of shared memory that a block may use
FEW = (64, 256)
OWN_US = 100.0


def time_of(batch, tile):
    """Faster the nearer to a tile that depends on the batch; some do not run."""
    if tile is None:
        return OWN_US
    if tile.stages == 5:
        return None
    best = 32 if batch >= 128 else 16
    return 80.0 + 5 * abs(math.log2(tile.block_m / best)) + abs(math.log2(tile.block_n / 128)) + tile.warps / 8


def timed(batches=FEW, time=time_of, runs=()):
    runs = list(runs)
    while (wanted := next_run(QWEN, runs, H200, batches)) is not None:
        batch, tile, calls = wanted
        runs.append(Run(batch, tile, calls, time(batch, tile)))
        assert len(runs) < 1000
    return runs


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("weight_bytes", [1, 2])
@pytest.mark.parametrize("shared", [A100, H200])
def test_there_are_tiles_for_each_batch_and_each_fits(batch, weight_bytes, shared):
    found = tiles(QWEN._replace(weight_bytes=weight_bytes), batch, shared)
    assert len(found) == len(set(found)) >= 30
    for tile in found:
        assert (tile.block_m + tile.block_n) * tile.block_k * weight_bytes * tile.stages <= shared
        assert tile.block_k <= QWEN.width


def test_narrow_experts_get_narrow_tiles():
    found = tiles(Experts(8, 64, 256, 2), 64, H200)
    assert found and all(tile.block_k == 64 and tile.block_n <= 128 for tile in found)


def test_the_fastest_is_found_and_timed_best():
    runs = timed()
    for batch in FEW:
        tile, gain = chosen(runs, FEW)[batch]
        sampled = {run.tile for run in runs if run.batch == batch}
        assert time_of(batch, tile) == min(us for t in sampled - {None} if (us := time_of(batch, t)) is not None)
        assert gain == pytest.approx(OWN_US / time_of(batch, tile))
    for calls, count in ROUNDS:
        own = [run for run in runs if run.batch == 64 and run.calls == calls and run.tile is None]
        others = [run for run in runs if run.batch == 64 and run.calls == calls and run.tile is not None]
        assert len(own) == 1 and 0 < len(others) <= count


def test_what_was_best_before_is_tried_first():
    best = chosen(timed((64,)), (64,))[64][0]
    runs = timed((64,))
    asked = [next_run(QWEN, runs, H200, FEW)]
    runs.append(Run(256, None, ROUNDS[0][0], OWN_US))
    asked.append(next_run(QWEN, runs, H200, FEW))
    assert asked == [(256, None, ROUNDS[0][0]), (256, best, ROUNDS[0][0])]


@given(st.integers(0, 200))
def test_cut_off_anywhere_it_goes_on_as_if_it_had_not_been(cut):
    whole = timed()
    assert timed(runs=whole[:cut]) == whole


def test_what_is_hardly_faster_is_left():
    runs = timed(time=lambda batch, tile: OWN_US if tile is None else OWN_US / WORTH + 0.1)
    assert chosen(runs, FEW) == {64: (None, 1.0), 256: (None, 1.0)}


def test_where_no_tile_runs_the_own_is_left():
    assert chosen(timed(time=lambda batch, tile: OWN_US if tile is None else None), FEW) == dict.fromkeys(
        FEW, (None, 1.0)
    )


def test_what_is_not_known_to_the_end_is_not_chosen():
    whole = timed((64,))
    last = next(i for i, run in enumerate(whole) if run.calls == ROUNDS[-1][0])
    for end in range(last, len(whole)):
        assert chosen(whole[:end], (64,)) == {}
    assert 64 in chosen(whole, (64,))


class MadeUp:
    """Times by a formula, for so many questions."""

    where = Where("E=128,N=768,device_name=MadeUp.json", "MadeUp", "3.6", H200)

    def __init__(self, most=10_000):
        self.asked, self._most = 0, most

    def time(self, batch, tile, calls):
        self.asked += 1
        if self.asked > self._most:
            raise KeyboardInterrupt
        own = {"BLOCK_SIZE_M": 7} if tile is None else None
        return Timed(time_of(batch, tile) if calls else None, own=own)


@pytest.mark.parametrize("cut", [30, 80])
def test_the_file_is_vllms_and_a_run_that_was_cut_off_goes_on(tmp_path, cut):
    whole = MadeUp()
    gains = kernel_tuning.tune(QWEN, whole, tmp_path / "whole", 60.0, lambda text: None, FEW)
    with pytest.raises(KeyboardInterrupt):
        kernel_tuning.tune(QWEN, MadeUp(cut), tmp_path / "cut", 60.0, lambda text: None, FEW)
    file = tmp_path / "cut" / "E=128,N=768,device_name=MadeUp.runs.jsonl"
    file.write_bytes(file.read_bytes()[:-5])
    rest = MadeUp()
    assert kernel_tuning.tune(QWEN, rest, tmp_path / "cut", 60.0, lambda text: None, FEW) == gains
    assert rest.asked == whole.asked - (cut - 1)
    written = json.loads((tmp_path / "cut" / MadeUp.where.file).read_text())
    assert written == json.loads((tmp_path / "whole" / MadeUp.where.file).read_text())
    assert list(written) == ["triton_version", "64", "256"]
    assert set(written["64"]) >= {
        "BLOCK_SIZE_M",
        "BLOCK_SIZE_N",
        "BLOCK_SIZE_K",
        "GROUP_SIZE_M",
        "num_warps",
        "num_stages",
    }
    other = QWEN._replace(hidden=4096)
    with pytest.raises(UserError, match="another search"):
        kernel_tuning.tune(other, rest, tmp_path / "cut", 60.0, lambda text: None, FEW)


def test_what_there_was_no_time_for_keeps_vllms_own(tmp_path):
    said = []
    assert kernel_tuning.tune(QWEN, MadeUp(), tmp_path, 0.0, said.append, FEW) == {}
    assert said == ["the limit is over: the same command goes on from here"]
    written = json.loads((tmp_path / MadeUp.where.file).read_text())
    assert written["64"] == written["256"] == {"BLOCK_SIZE_M": 7}


def test_a_tile_is_what_vllm_looks_up():
    tile = Tile(16, 64, 128, 1, 4, 3).as_vllm()
    assert (tile["BLOCK_SIZE_M"], tile["BLOCK_SIZE_N"], tile["BLOCK_SIZE_K"]) == (16, 64, 128)
    assert (tile["GROUP_SIZE_M"], tile["num_warps"], tile["num_stages"], tile["SPLIT_K"]) == (1, 4, 3, 1)
