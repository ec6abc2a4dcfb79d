"""Which replica holds which beginning of a prompt in its prefix cache. Pure.

Learned from grants (what is prefilled there will be cached) and from the cores' own KV events; bounded by what each
replica can hold, the least recently used going first, as in vLLM's cache.

Not every block is kept: a hash decides by its own value whether it is (`Anchors`), so that tickets and events agree
without knowing of positions, and a prompt of 64 blocks costs 16 entries.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from replicas.messages import Ticket

ANCHOR_TOKENS = 64  # prompt tokens to an anchor, on average
NOBODY: Mapping[str, None] = MappingProxyType({})


class Anchors(NamedTuple):
    """The blocks of a prompt that the index knows by: their hashes, and the prompt's tokens up to each one's end."""

    blocks: tuple[int, ...]
    tokens: tuple[int, ...]


NONE = Anchors((), ())


class Match(NamedTuple):
    """The longest beginning of a prompt that any replica holds."""

    tokens: int
    holders: Mapping[str, None]  # an ordered set of replica ids: of a set of strings each process has its own order


class PrefixIndex:
    """Anchor -> replicas. A block's hash covers all blocks before it, so holding one means holding its prompt."""

    def __init__(self) -> None:
        self._every = 1  # one in so many blocks is an anchor
        self._block_tokens = 1
        self._holders: dict[int, dict[str, None]] = {}
        self._held: dict[str, OrderedDict[int, None]] = {}  # per replica, the least recently used first
        self._limit: dict[str, int] = {}

    def join(self, replica_id: str, block_tokens: int, blocks: int) -> None:
        """A replica with an empty cache of so many blocks. All replicas have blocks of one size."""
        self.leave(replica_id)
        self._block_tokens, self._every = block_tokens, max(ANCHOR_TOKENS // block_tokens, 1)
        self._held[replica_id], self._limit[replica_id] = OrderedDict(), max(blocks // self._every, 1)

    def leave(self, replica_id: str) -> None:
        for block in self._held.pop(replica_id, ()):
            self._drop(replica_id, block)
        self._limit.pop(replica_id, None)

    def anchors(self, ticket: Ticket) -> Anchors:
        every, size = self._every, self._block_tokens
        at = [i for i, block in enumerate(ticket.blocks) if not block % every]
        return Anchors(tuple([ticket.blocks[i] for i in at]), tuple([(i + 1) * size for i in at]))

    def add(self, replica_id: str, blocks: Sequence[int]) -> None:
        """The replica holds these anchors of one prompt, or will in a moment."""
        held = self._held.get(replica_id)
        if held is None:
            return
        for block in reversed(blocks):  # vLLM evicts a prompt's end first: what is left is a beginning
            if block in held:
                held.move_to_end(block)
            else:
                held[block] = None
                if (holders := self._holders.get(block)) is None:
                    self._holders[block] = {replica_id: None}
                else:
                    holders[replica_id] = None
        while len(held) > self._limit[replica_id]:
            block, _ = held.popitem(last=False)
            self._drop(replica_id, block)

    def events(self, replica_id: str, stored: Sequence[int], removed: Sequence[int]) -> None:
        """What the core's own KV events say, of all blocks."""
        self.add(replica_id, [block for block in stored if not block % self._every])
        held = self._held.get(replica_id)
        for block in removed:
            if held is not None and block in held:
                del held[block]
                self._drop(replica_id, block)

    def _drop(self, replica_id: str, block: int) -> None:
        holders = self._holders[block]
        holders.pop(replica_id, None)
        if not holders:
            del self._holders[block]

    def longest(self, anchors: Anchors) -> Match:
        """The longest beginning that any replica holds, and who does."""
        count = _last_in(self._holders, anchors.blocks)
        return Match(anchors.tokens[count - 1], self._holders[anchors.blocks[count - 1]]) if count else Match(0, NOBODY)

    def matched(self, replica_id: str, anchors: Anchors) -> int:
        """Prompt tokens, from the first, that the replica holds."""
        return leading(self._held.get(replica_id, {}), anchors)


def leading(known: Mapping[int, object], anchors: Anchors) -> int:
    """Prompt tokens, from the first, whose anchors are all known."""
    count = _last_in(known, anchors.blocks)
    return anchors.tokens[count - 1] if count else 0


def _last_in(known: Mapping[int, object], blocks: Sequence[int]) -> int:
    """How many of the blocks, from the first, are known. Knowing one means knowing those before: search by halves."""
    low, high = 0, len(blocks)
    while low < high:
        middle = (low + high + 1) // 2
        if blocks[middle - 1] in known:
            low = middle
        else:
            high = middle - 1
    return low
