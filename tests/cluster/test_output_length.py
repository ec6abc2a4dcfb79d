"""OutputLength: from a prior to what this tenant's prompts of this length get."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.output_length import HORIZON, PRIOR_TOKENS, OutputLength

LENGTHS = st.integers(0, 10_000)


def test_the_prior_holds_until_something_is_known_and_never_more_than_is_allowed():
    lengths = OutputLength()
    assert lengths.expected("t", 100, 10_000) == PRIOR_TOKENS
    assert lengths.expected("t", 100, 7) == 7


def test_one_odd_answer_moves_it_little_and_many_settle_it():
    lengths = OutputLength()
    lengths.learn("t", 100, 0)
    assert PRIOR_TOKENS / 2 < lengths.expected("t", 100, 10_000) < PRIOR_TOKENS
    for _ in range(2000):
        lengths.learn("t", 100, 1000)
    assert 990 <= lengths.expected("t", 100, 10_000) <= 1000


def test_it_follows_a_change_however_much_came_before():
    lengths = OutputLength()
    for _ in range(10_000):
        lengths.learn("t", 100, 1000)
    for _ in range(int(3 * HORIZON)):
        lengths.learn("t", 100, 10)
    assert lengths.expected("t", 100, 10_000) < 0.1 * 1000


def test_tenants_and_prompts_of_another_length_are_kept_apart():
    lengths = OutputLength()
    for _ in range(100):
        lengths.learn("t", 100, 5)
    assert lengths.expected("t", 127, 10_000) < 50  # as long a prompt, within a factor of two
    assert lengths.expected("t", 128, 10_000) == PRIOR_TOKENS
    assert lengths.expected("u", 100, 10_000) == PRIOR_TOKENS


@given(st.lists(LENGTHS, max_size=50), LENGTHS)
def test_it_stays_between_what_was_seen_and_the_prior(seen, max_tokens):
    lengths = OutputLength()
    for output_tokens in seen:
        lengths.learn("t", 1, output_tokens)
    expected = lengths.expected("t", 1, max_tokens)
    least, most = min([PRIOR_TOKENS, *seen]), max([PRIOR_TOKENS, *seen])
    assert min(max_tokens, int(least)) <= expected <= min(max_tokens, int(most) + 1)
