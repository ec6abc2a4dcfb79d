import numpy as np
import pytest

from experts.load import LoadWindow, shard_tokens
from experts.placement import ShardPlacement
from experts.plan import imbalance


def shard(rank: int, *layers: tuple[int, ...]) -> ShardPlacement:
    experts = {f"layers.{n}.experts": ids for n, ids in enumerate(layers)}
    return ShardPlacement(tp_rank=rank, ep_rank=rank, ep_size=2, pid=1, experts=experts, expert_bytes=0)


def test_a_window_holds_the_last_minute_of_counts_that_only_grow() -> None:
    window = LoadWindow(window_s=60.0)
    counts = np.array([[10, 0]])
    assert window.add(0.0, counts).tokens.tolist() == [[0, 0]]  # what was before is nobody's minute
    recent = window.add(20.0, counts + np.array([[5, 1]]))
    assert (recent.tokens.tolist(), recent.seconds) == ([[5, 1]], 20.0)
    window.add(50.0, counts + np.array([[6, 1]]))
    recent = window.add(85.0, counts + np.array([[7, 9]]))
    assert (recent.tokens.tolist(), recent.seconds) == ([[2, 8]], 65.0)  # since 20 s: the last that lies a minute back


def test_after_a_pause_the_window_begins_with_the_last_count_before_it() -> None:
    window = LoadWindow(window_s=60.0)
    window.add(0.0, np.array([[1]]))
    window.add(10.0, np.array([[2]]))
    assert window.add(1000.0, np.array([[7]])) == (np.array([[5]]), 990.0)


def test_a_shards_load_is_that_of_its_experts_and_copies_share_theirs() -> None:
    tokens = np.array([[8, 4, 2], [0, 6, 6]])
    shards = [shard(0, (0, 1), (0, 1)), shard(1, (0, 2), (1, 2))]
    assert shard_tokens(tokens, shards).tolist() == [[8.0, 6.0], [3.0, 9.0]]


def test_an_expert_that_is_nowhere_burdens_nobody() -> None:
    assert shard_tokens(np.array([[5, 5]]), [shard(0, (0,))]).tolist() == [[5.0]]


@pytest.mark.parametrize(("load", "expected"), [([[1, 3]], [1.5]), ([[2, 2], [0, 0]], [1.0, 1.0])])
def test_imbalance_is_max_over_mean(load: list[list[int]], expected: list[float]) -> None:
    assert imbalance(np.array(load)).tolist() == expected
