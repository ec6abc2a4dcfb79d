"""LAYOUTS.md says what the planner says."""

import pytest

from experts.model_spec import TIERS
from ops.planner import layouts


def test_the_pages_tables_are_todays():
    text = layouts.PAGE.read_text()
    assert layouts.rewritten(text) == text, "run: python -m ops.planner.layouts"


def test_a_page_without_a_block_is_refused():
    with pytest.raises(ValueError, match="0 blocks shapes"):
        layouts.rewritten(layouts.PAGE.read_text().replace("<!-- shapes -->", ""))


def test_counted_parameters_are_the_published_ones():
    for name, (total, active) in layouts.PUBLISHED.items():
        spec = layouts.tier(name)
        assert spec.parameters / 1e9 == pytest.approx(total, rel=0.01)
        counted = (spec.active_parameters / 1e9, (spec.active_parameters - spec.vocabulary * spec.hidden) / 1e9)
        assert min(abs(each / active - 1) for each in counted) < 0.025
    assert set(layouts.PUBLISHED) == set(TIERS)


def test_a_solved_term_gives_the_figure_it_was_solved_for():
    for term in layouts._terms():
        for layout, target in layouts.THEIRS.items():
            if layout.by_expert or not term.experts_only:
                solved = layouts._solved(layout, term, target)
                assert layouts._reached(layout, term, solved) == pytest.approx(target, rel=0.02)


def test_one_table_has_a_row_for_each_layout():
    rows = layouts.layouts().splitlines()[2:]
    assert len(rows) == len(list(layouts.legal(layouts.SPEC, layouts.A100S)))
    assert sum("**" in row for row in rows) == 2 and any(row.startswith("| **TP4 EP4**") for row in rows)
