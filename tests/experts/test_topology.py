"""Clusters by their names."""

import pytest

from experts.topology import GPUS, Cluster, UnknownCluster, parse


def test_a_cluster_is_read_and_written_the_same_way() -> None:
    assert parse("8xA100-80GB") == Cluster(1, 8, GPUS["A100-80GB"])
    assert parse(" 4x8xh200-141gb ") == Cluster(4, 8, GPUS["H200-141GB"])
    for text in ("8xA100-80GB", "4x8xH200-141GB"):
        assert str(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [("A100", "write GPUSxGPU"), ("8xB100", "there are A100-40GB"), ("0xA100-80GB", "at least one"), ("", "write")],
)
def test_another_text_is_refused_with_what_is_possible(text: str, said: str) -> None:
    with pytest.raises(UnknownCluster, match=said):
        parse(text)


def test_only_groups_beyond_a_node_send_across() -> None:
    cluster = parse("4x8xA100-80GB")
    assert cluster.share_across_nodes(1) == cluster.share_across_nodes(8) == 0.0
    assert cluster.share_across_nodes(16) == pytest.approx(8 / 15)
