"""Both ways of counting give the same, in steps of any size."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experts import routed_tokens
from experts.routed_tokens import CopiedChoices, KeptChoices, RoutedTokens

LAYERS, EXPERTS, TOP_K, MOST = 3, 5, 2, 16
CPU = torch.device("cpu")


def counters() -> list[RoutedTokens]:
    return [KeptChoices(LAYERS, EXPERTS), CopiedChoices(LAYERS, EXPERTS, TOP_K, MOST, CPU)]


@given(st.lists(st.integers(0, MOST), max_size=8), st.integers(0, 99))
def test_every_choice_is_counted_once(steps: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    counted = counters()
    expected = torch.zeros(LAYERS, EXPERTS, dtype=torch.int64)
    for tokens in steps:
        for layer in range(LAYERS):
            ids = torch.randint(0, EXPERTS, (tokens, TOP_K), generator=generator, dtype=torch.int32)
            expected[layer] += torch.bincount(ids.flatten(), minlength=EXPERTS)
            for counter in counted:
                counter.of_layer(layer)(ids)
        for counter in counted:
            counter.step_issued(tokens)
    for counter in counted:
        assert counter.counts().tolist() == expected.tolist()
        assert counter.counts().tolist() == expected.tolist(), "asking changes nothing"


def test_padding_is_not_counted_where_graphs_pad() -> None:
    counter = CopiedChoices(LAYERS, EXPERTS, TOP_K, MOST, CPU)
    for layer in range(LAYERS):
        counter.of_layer(layer)(torch.full((8, TOP_K), layer, dtype=torch.int32))
    counter.step_issued(3)
    assert counter.counts().sum(1).tolist() == [6, 6, 6]


@pytest.mark.parametrize("limit", ["KEPT_STEPS", "KEPT_TOKENS"])
def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(routed_tokens, limit, 4)
    counter = KeptChoices(1, EXPERTS)
    for step in range(9):
        counter.of_layer(0)(torch.tensor([[0, 1]], dtype=torch.int32))
        counter.step_issued(1)
        assert len(counter._kept[0]) == (step + 1) % 4
    assert counter.counts().tolist() == [[9, 9, 0, 0, 0]]
