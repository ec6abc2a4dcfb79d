"""A paged KV cache with prefix caching, by count: which hashed blocks are held, which may be evicted. Pure.

As vLLM's block pool: a block that nobody holds but that has a hash stays until its space is needed, oldest first.
Blocks without a hash are only counted.
"""

from collections import OrderedDict
from collections.abc import Sequence


class PagedKv:
    """`total` blocks. Hashes are those of `Ticket.blocks`."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0  # blocks that some request holds
        self._holders: dict[int, int] = {}  # hash of a cached block -> requests that hold it
        self._idle: OrderedDict[int, None] = OrderedDict()  # those that nobody holds, in the order of their eviction
        self._changed: dict[int, bool] = {}  # hash -> whether it is cached now; since `take_events`

    @property
    def free(self) -> int:
        """Blocks that can be had, idle ones by evicting them."""
        return self.total - self.used

    def __contains__(self, block: int) -> bool:
        return block in self._holders

    def match(self, blocks: Sequence[int], limit: int) -> int:
        """How many of the first `limit` blocks are cached, from the first on."""
        holders, count = self._holders, 0
        for block in blocks:
            if count >= limit or block not in holders:
                break
            count += 1
        return count

    def idle_among(self, blocks: Sequence[int]) -> int:
        """How many of them nobody holds: to hold them takes as much free space as new ones."""
        holders = self._holders
        return sum([not holders[block] for block in blocks])

    def hold(self, blocks: Sequence[int]) -> None:
        """One more request holds these cached blocks."""
        holders = self._holders
        for block in blocks:
            count = holders[block]
            if not count:
                del self._idle[block]
                self.used += 1
            holders[block] = count + 1

    def allocate(self, count: int) -> None:
        """Takes blocks that have no hash yet. The caller has looked that they are free."""
        if count > self.total - self.used:
            raise RuntimeError(f"{count} KV blocks of {self.total - self.used} free ones")
        self.used += count
        excess = self.used + len(self._idle) - self.total
        for _ in range(excess):
            oldest, _ = self._idle.popitem(last=False)
            del self._holders[oldest]
            self._changed[oldest] = False

    def name(self, blocks: Sequence[int]) -> list[int]:
        """Allocated blocks are full and get their hashes. Returns those; a hash that another block has is left out."""
        holders = self._holders
        named = [block for block in blocks if block not in holders]
        for block in named:
            holders[block] = 1
            self._changed[block] = True
        return named

    def release(self, blocks: Sequence[int], unnamed: int) -> None:
        """A request gives back its blocks; the last of its chain will be evicted first, as in vLLM."""
        holders, idle = self._holders, self._idle
        self.used -= unnamed
        for block in reversed(blocks):
            left = holders[block] = holders[block] - 1
            if not left:
                idle[block] = None
                self.used -= 1

    def clear(self) -> None:
        """Forgets all hashes; nobody holds a block. Told to nobody: who clears it makes known that all is gone."""
        if self.used:
            raise RuntimeError(f"{self.used} KV blocks are held")
        self._holders.clear()
        self._idle.clear()
        self._changed.clear()

    def take_events(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Blocks that appeared and that went since the call before."""
        if not self._changed:
            return (), ()
        changed, self._changed = self._changed, {}
        stored, removed = (tuple([b for b, cached in changed.items() if cached is now]) for now in (True, False))
        return stored, removed
