from rich.console import Console

from ops.experts import render

REPORT = {
    "layers": ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"],
    "tokens": [[100, 100, 100, 100], [0, 10, 30, 360]],
    "seconds": 42.4,
    "replicas": [
        {
            "id": "[bold]r0",
            "seconds": 42.4,
            "tokens": 800,
            "shards": [{"rank": 0, "tokens": 210.0}, {"rank": 1, "tokens": 590.0}],
            "shard_max_over_mean": [1.0, 1.95],
        }
    ],
}


def text(report):
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    for part in render(report):
        console.print(part)
    return console.export_text()


def test_the_heat_the_hottest_and_the_shards_are_shown():
    shown = text(REPORT)
    lines = shown.splitlines()
    assert "800 choices of an expert in 42 s, 2 MoE layers of 4 experts" in shown
    assert any("▒▒▒▒" in line and "1.00" in line for line in lines)
    assert any("··░█" in line and "3.60" in line and "3 (3.6x), 2 (0.3x)" in line for line in lines)
    assert any("[bold]r0" in line and "26.2% / 73.8%" in line and "1 (1.95)" in line for line in lines)


def test_before_anything_was_counted_a_sentence_says_so():
    for report in ({}, {"tokens": [], "replicas": []}, {**REPORT, "tokens": [[0, 0]]}):
        assert "Nothing has been counted yet" in text(report)


def test_many_experts_fold_over_lines():
    shown = text({**REPORT, "tokens": [list(range(1, 257))]})
    assert sum(shown.count(mark) for mark in "·░▒▓█") == 256 + 5  # and the legend
