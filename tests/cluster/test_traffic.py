"""Sessions find their version: always the same one, in the versions' shares, and a canary keeps whom it has."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from cluster.traffic import POINTS, is_mirrored, laid_out, session_of, version_of

sessions = st.integers(0, POINTS - 1)
names = st.sampled_from(["v1", "v2", "v3", "v4"])
weights = st.floats(1e-6, 1e6)
traffic = st.dictionaries(names, weights, min_size=1)


def test_a_session_is_a_point_that_never_changes():
    assert session_of("acme", "chat-17") == 7443688575636113159
    assert session_of("acme", "chat-18") != session_of("acme", "chat-17") != session_of("other", "chat-17")
    assert session_of("a", "bc") != session_of("ab", "c")
    assert 0 <= session_of("", "\ud800") < POINTS  # what a client sends need not be valid text


@given(sessions, traffic, names)
def test_every_session_has_a_version_that_has_a_share(session, shares, stable):
    assert version_of(session, laid_out(shares | {"none": 0.0}, stable)) in shares


@given(sessions, traffic, names, st.floats(1e-3, 1e3))
def test_only_each_ones_part_of_the_sum_counts(session, shares, stable, factor):
    scaled = {version: share * factor for version, share in shares.items()}
    ends = [[end for end, _ in laid_out(each, stable)] for each in (shares, scaled)]
    if all(abs(session - end) > 1e-9 * POINTS for end in ends[0]):
        assert version_of(session, laid_out(shares, stable)) == version_of(session, laid_out(scaled, stable))


@given(sessions, st.floats(0, 1), st.floats(0, 1))
def test_a_canary_whose_share_grows_keeps_the_sessions_that_it_has(session, one, other):
    smaller, larger = sorted((one, other))
    before, after = [version_of(session, laid_out({"v1": 1 - share, "v2": share}, "v1")) for share in (smaller, larger)]
    assert not (before == "v2" and after == "v1")


@given(st.lists(names, min_size=1, unique=True), names)
def test_the_stable_version_is_the_last_whatever_stands_where(order, stable):
    laid = [version for _, version in laid_out(dict.fromkeys(order, 1.0), stable)]
    assert laid == [v for v in order if v != stable] + [v for v in order if v == stable]


@given(st.integers(0, 10**9), st.sampled_from([0.01, 0.1, 0.5]))
def test_shares_are_hit_within_the_binomial_error(seed, share):
    """Chance would be further off in about one of a million counts; the hash spreads sessions as chance would."""
    count = 4000
    intervals = laid_out({"v2": share, "v1": 1 - share}, "v1")
    points = [session_of(f"t{seed}", str(n)) for n in range(count)]
    hits = sum(version_of(point, intervals) == "v2" for point in points)
    copies = sum(is_mirrored(point, share) for point in points)
    for found in (hits, copies):
        assert abs(found - count * share) <= 5.4 * math.sqrt(count * share * (1 - share)) + 1


@given(sessions, st.floats(0, 1))
def test_copies_are_made_of_sessions_that_no_canary_has_while_that_can_be(session, share):
    canary = version_of(session, laid_out({"v2": 1 - share, "v1": share}, "v1")) == "v2"
    near_the_edge = abs(session - (1 - share) * POINTS) < 1e-9 * POINTS
    assert near_the_edge or canary != is_mirrored(session, share)


def test_no_share_mirrors_nothing_and_a_whole_one_everything():
    assert not is_mirrored(POINTS - 1, 0.0) and is_mirrored(0, 1.0)
