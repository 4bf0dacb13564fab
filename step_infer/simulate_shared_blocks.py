"""The KV blocks of a simulated engine whose traces write partly the same text.

The same pool as `simulate_blocks.BlockPool`, block by block: a preempted trace that comes back may
find blocks that another trace has written, and then needs fewer of its own. That changes who is
admitted when, so it is followed where the texts are known; it costs time for every block.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class SharedBlockPool:
    """The free blocks, and every cached copy of every full block.

    Args:
        blocks: usable blocks, vLLM's null block left out.
        block_size: tokens a block holds.
        content: for each trace one number for each of its full blocks, prompt included; equal
            numbers stand for equal text up to the block's end.
    """

    def __init__(self, blocks: int, block_size: int, content: Sequence[Sequence[int]]) -> None:
        self.blocks = blocks
        self.block_size = block_size
        self.free = blocks
        """Free blocks, those included whose content could still be found."""
        self._content = content
        self._held: list[list[int]] = [[] for _ in content]  # copies of each trace's cached blocks
        self._copies: dict[int, dict[int, int]] = {}  # content -> copy -> traces that hold it
        self._blank = blocks  # free blocks without a hash
        self._queue: OrderedDict[int, int] = OrderedDict()  # free copies and their content
        self._taken = 0  # blocks taken since the queue was last looked at
        self._numbers = 0

    def take(self, count: int) -> None:
        """Take free blocks; there must be as many."""
        self.free -= count
        self._taken += count

    def find(self, trace: int, group: int, tokens: int) -> tuple[int, int]:
        """Return how many full blocks of a trace are cached, and how many of them are held."""
        self._settle()
        found = held = 0
        for content in self._content[trace][: (tokens - 1) // self.block_size]:
            copies = self._copies.get(content)
            if not copies:
                break
            found += 1
            held += copies[next(iter(copies))] > 0
        return found, held

    def admit(self, trace: int, group: int, found: int) -> None:
        """Hold the `found` blocks of a trace that starts or comes back."""
        for content in self._content[trace][:found]:
            copies = self._copies[content]
            copy = next(iter(copies))
            if copies[copy] == 0:
                del self._queue[copy]
                self.free -= 1
            copies[copy] += 1
            self._held[trace].append(copy)

    def computed(self, trace: int, group: int, tokens: int) -> None:
        """Note that a trace's prefill has come to `tokens` tokens: its full blocks are cached."""
        self._cache(trace, tokens // self.block_size)

    def cached(self, trace: int) -> int:
        """Return how many of a trace's blocks are in the prefix cache."""
        return len(self._held[trace])

    def fill(self, traces: Iterable[int]) -> None:
        """Cache one more block of each of these traces, in this order."""
        for trace in traces:
            self._cache(trace, len(self._held[trace]) + 1)

    def release(self, trace: int, group: int, held: int, hashed: int) -> None:
        """Free a trace's `held` blocks, the first `hashed` of which are in the prefix cache."""
        self._settle()
        self._cache(trace, hashed)
        hashed = len(self._held[trace])
        self._blank += held - hashed
        self.free += held - hashed
        content = self._content[trace]
        for index in range(hashed - 1, -1, -1):
            copy = self._held[trace][index]
            copies = self._copies[content[index]]
            copies[copy] -= 1
            if copies[copy] == 0:
                self._queue[copy] = content[index]
                self.free += 1
        self._held[trace].clear()

    def _cache(self, trace: int, full: int) -> None:
        held, content = self._held[trace], self._content[trace]
        for index in range(len(held), full):
            self._copies.setdefault(content[index], {})[self._numbers] = 1
            held.append(self._numbers)
            self._numbers += 1

    def _settle(self) -> None:
        """Let the blocks taken so far overwrite what they held."""
        blank = min(self._taken, self._blank)
        self._blank -= blank
        for _ in range(self._taken - blank):
            copy, content = self._queue.popitem(last=False)
            copies = self._copies[content]
            del copies[copy]
            if not copies:
                del self._copies[content]
        self._taken = 0
