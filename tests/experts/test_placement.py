"""CPU bindings: values in, values out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experts.placement import omp_binding


@pytest.mark.parametrize(
    ("shards", "cpus", "binding"),
    [
        (1, [0, 1], "0,1"),
        (2, [0, 1], "0|1"),
        (2, [3, 2, 1, 0], "0,1|2,3"),
        (2, [0, 1, 2], "0,1|2"),
        (3, [4, 6, 8, 10], "4,6|8|10"),
    ],
)
def test_every_shard_gets_cpus_of_its_own(shards: int, cpus: list[int], binding: str) -> None:
    assert omp_binding(shards, cpus) == binding


@given(st.integers(1, 16), st.sets(st.integers(0, 300), max_size=64))
def test_a_binding_uses_each_cpu_once_and_evenly(shards: int, cpus: set[int]) -> None:
    if shards > len(cpus):
        with pytest.raises(ValueError, match="CPUs, one each"):
            omp_binding(shards, sorted(cpus))
        return
    lists = [[int(cpu) for cpu in part.split(",")] for part in omp_binding(shards, sorted(cpus)).split("|")]

    assert len(lists) == shards
    assert [cpu for part in lists for cpu in part] == sorted(cpus)
    assert max(map(len, lists)) - min(map(len, lists)) <= 1


def test_more_shards_than_cpus_says_what_to_change() -> None:
    message = r"4 expert shards need 4 CPUs, one each, but this process may use only 2 \(0,1\)\. Lower expert_parallel"
    with pytest.raises(ValueError, match=message):
        omp_binding(4, [0, 1])
    with pytest.raises(ValueError, match="at least one shard"):
        omp_binding(0, [0, 1])
