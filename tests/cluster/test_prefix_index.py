"""PrefixIndex against a plain list of what each replica holds."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cluster.prefix_index import ANCHOR_TOKENS, NOBODY, Anchors, PrefixIndex
from replicas.messages import Ticket

REPLICAS = ("a", "b", "c")
EVERY = 4
BLOCK_TOKENS = ANCHOR_TOKENS // EVERY


def ticket(*blocks: int) -> Ticket:
    return Ticket(request_id="r", prompt_tokens=len(blocks) * BLOCK_TOKENS, max_tokens=1, blocks=blocks)


def index(*replicas: str, anchors: int = 100) -> PrefixIndex:
    made = PrefixIndex()
    for each in replicas:
        made.join(each, BLOCK_TOKENS, anchors * EVERY)
    return made


def hashed(path: tuple[int, ...]) -> int:
    """A block's hash covers all before it; EVERY divides most, so that there is something to match."""
    value = hash(path) & (1 << 62) - 1
    return value - value % EVERY if value % 5 else value


def chain(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(hashed(path[: n + 1]) for n in range(len(path)))


# Prompts as paths in a tree: two that begin alike share those blocks.
paths = st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple)


@given(paths)
def test_anchors_are_the_blocks_that_a_hash_chooses_with_the_tokens_up_to_their_ends(path):
    blocks = chain(path)
    anchors = index("a").anchors(ticket(*blocks))
    chosen = [(b, (n + 1) * BLOCK_TOKENS) for n, b in enumerate(blocks) if b % EVERY == 0]
    assert list(zip(*anchors, strict=True)) == chosen


def test_large_blocks_are_all_anchors():
    made = PrefixIndex()
    made.join("a", 2 * ANCHOR_TOKENS, 10)
    assert made.anchors(ticket(1, 2, 3)) == Anchors((1, 2, 3), (128, 256, 384))


def test_the_least_recently_used_prompt_goes_first_and_by_its_end():
    made = index("a", anchors=5)
    old, new = made.anchors(ticket(4, 8, 12)), made.anchors(ticket(20, 24, 28))
    made.add("a", old.blocks)
    made.add("a", new.blocks)
    assert (made.matched("a", old), made.matched("a", new)) == (2 * BLOCK_TOKENS, 3 * BLOCK_TOKENS)
    made.add("a", old.blocks)  # used again: now the other is the older one
    assert (made.matched("a", old), made.matched("a", new)) == (3 * BLOCK_TOKENS, 2 * BLOCK_TOKENS)


def test_a_prompt_longer_than_the_cache_leaves_its_beginning():
    made = index("a", anchors=3)
    anchors = made.anchors(ticket(*range(4, 44, 4)))
    made.add("a", anchors.blocks)
    assert made.longest(anchors) == (3 * BLOCK_TOKENS, {"a": None})


def test_what_was_shared_by_many_prompts_outlives_their_own_ends():
    made = index("a", anchors=6)
    shared = (4, 8, 12)
    for end in range(100, 200, 4):
        made.add("a", (*shared, end))
    assert made.matched("a", made.anchors(ticket(*shared))) == 3 * BLOCK_TOKENS


def test_a_replica_that_joins_again_has_an_empty_cache():
    made = index("a", "b")
    anchors = made.anchors(ticket(4, 8))
    for each in "ab":
        made.add(each, anchors.blocks)
    made.join("a", BLOCK_TOKENS, 400)
    assert made.longest(anchors) == (2 * BLOCK_TOKENS, {"b": None}) and made.matched("a", anchors) == 0


def test_what_is_said_of_a_replica_that_left_is_ignored():
    made = index("a")
    made.leave("a")
    made.leave("a")
    made.add("a", (4,))
    made.events("a", (4, 8), (4,))
    assert made.longest(made.anchors(ticket(4, 8))) == (0, NOBODY)


class Caches(RuleBasedStateMachine):
    """Any order of events, against per replica a list of blocks, the least recently used first."""

    @initialize(limit=st.integers(1, 12))
    def begin(self, limit: int) -> None:
        self.limit = limit
        self.index = index()
        self.held: dict[str, list[int]] = {}

    @rule(replica=st.sampled_from(REPLICAS))
    def join(self, replica: str) -> None:
        self.index.join(replica, BLOCK_TOKENS, self.limit * EVERY)
        self.held[replica] = []

    @rule(replica=st.sampled_from(REPLICAS))
    def leave(self, replica: str) -> None:
        self.index.leave(replica)
        self.held.pop(replica, None)

    @rule(replica=st.sampled_from(REPLICAS), path=paths)
    def add(self, replica: str, path: tuple[int, ...]) -> None:
        anchors = self.index.anchors(ticket(*chain(path)))
        self.index.add(replica, anchors.blocks)
        self._add(replica, [b for b in chain(path) if b % EVERY == 0])

    @rule(replica=st.sampled_from(REPLICAS), path=paths, removed=st.lists(paths, max_size=3), new=st.booleans())
    def events(self, replica: str, path: tuple[int, ...], removed: list[tuple[int, ...]], new: bool) -> None:
        stored = chain(path)[-1:] if new else chain(path)  # vLLM tells of new blocks only
        gone = [chain(p)[-1] for p in removed]
        self.index.events(replica, stored, gone)
        self._add(replica, [b for b in stored if b % EVERY == 0])
        if replica in self.held:
            self.held[replica] = [b for b in self.held[replica] if b not in gone]

    def _add(self, replica: str, blocks: list[int]) -> None:
        if replica in self.held:
            held = [b for b in self.held[replica] if b not in blocks] + blocks[::-1]
            self.held[replica] = held[-self.limit :]

    @rule(path=paths)
    def ask(self, path: tuple[int, ...]) -> None:
        anchors = self.index.anchors(ticket(*chain(path)))
        self._check(anchors, {b for held in self.held.values() for b in held}, *self.index.longest(anchors))
        for replica in REPLICAS:
            held = set(self.held.get(replica, ()))
            tokens = self.index.matched(replica, anchors)
            self._check(anchors, held, tokens, {replica: None} if tokens else NOBODY)

    def _check(self, anchors: Anchors, held: set[int], tokens: int, holders: Mapping[str, None]) -> None:
        known = [block in held for block in anchors.blocks]
        count = anchors.tokens.index(tokens) + 1 if tokens else 0
        if known == sorted(known, reverse=True):  # no block without those before it: the naive answer
            assert count == sum(known)
        # With holes (events of single blocks) more than one answer is true; each ends where something is held.
        assert not count or known[count - 1]
        assert count == len(known) or not known[count]
        if count:
            last = anchors.blocks[count - 1]
            assert set(holders) <= {r for r, blocks in self.held.items() if last in blocks}
            assert holders

    @invariant()
    def nothing_is_kept_beyond_what_is_held(self) -> None:
        of_block: dict[int, set[str]] = {}
        for replica, held in self.held.items():
            assert len(held) <= self.limit
            for block in held:
                of_block.setdefault(block, set()).add(replica)
        assert {block: set(holders) for block, holders in self.index._holders.items()} == of_block
        assert {r: list(held) for r, held in self.index._held.items()} == self.held


Caches.TestCase.settings = settings(max_examples=40, stateful_step_count=30)
TestCaches = Caches.TestCase
