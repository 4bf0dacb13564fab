"""The KV blocks of a simulated engine: how many are free, and what freed blocks still hold.

Follows vLLM's block pool (vllm/v1/core/block_pool.py) for one full-attention cache group with
prefix caching. Blocks are not looked at one by one: free blocks without a hash are taken first,
then hashed ones in the order in which they were freed, the tail of a trace before its head. So a
count and a queue of runs say all. A trace that comes back after a preemption finds what is left of
its own run; the traces of a question share their prompt's full blocks.

In `BlockPool` two traces that write the same text share no block: vLLM shares one only when a
preempted trace comes back. Such a trace may find blocks that another has written, and then needs
fewer of its own, which changes who is admitted when. Where the texts are known `SharedBlockPool`
follows that, block by block; it costs time for each.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

_Key = tuple[str, int, int]


class _Prompt:
    """The blocks of one prompt."""

    __slots__ = ("copies", "full", "resident", "shared", "users")

    def __init__(self, tokens: int, block_size: int) -> None:
        self.full = tokens // block_size
        """Blocks that the prompt fills."""
        self.shared = (tokens - 1) // block_size
        """Of these, the blocks that a newcomer may find in the cache: its last token is always
        computed anew."""
        self.resident = 0
        """Shared blocks in the cache, held or free."""
        self.users = 0
        """Traces that hold them."""
        self.copies: dict[int, int] = {}
        """Copies of the last full block where it is not shared: number -> traces that hold it."""


class BlockPool:
    """The free blocks, and the cached content of those that were freed.

    Args:
        blocks: usable blocks, vLLM's null block left out.
        block_size: tokens a block holds.
        prompts: tokens of each group's prompt.
    """

    def __init__(self, blocks: int, block_size: int, prompts: list[int]) -> None:
        self.blocks = blocks
        self.block_size = block_size
        self.free = blocks
        """Free blocks, those included whose content could still be found."""
        self._prompts = [_Prompt(tokens, block_size) for tokens in prompts]
        self._blank = blocks  # free blocks without a hash
        self._runs: OrderedDict[_Key, list[int]] = OrderedDict()  # [first, end) of freed content
        self._taken = 0  # blocks taken since the queue was last looked at
        self._copy_of: dict[int, int] = {}  # trace -> its copy of the prompt's last block
        self._numbers = 0

    def take(self, count: int) -> None:
        """Take free blocks; there must be as many."""
        self.free -= count
        self._taken += count

    def find(self, trace: int, group: int, tokens: int) -> tuple[int, int]:
        """Return how many full blocks of a trace of `tokens` tokens are cached.

        Returns:
            All such blocks, and how many of them other traces hold (the others are free blocks).
        """
        self._settle()
        prompt = self._prompts[group]
        most = (tokens - 1) // self.block_size
        found = prompt.resident
        held = found if prompt.users else 0
        if found < prompt.shared:
            return found, held
        if prompt.full > prompt.shared and most > found:
            copy = next(iter(prompt.copies), None)
            if copy is None:
                return found, held
            found += 1
            held += prompt.copies[copy] > 0
        if found == prompt.full and (run := self._runs.get(("own", trace, 0))) is not None:
            found = max(found, min(run[1], most))
        return found, held

    def admit(self, trace: int, group: int, found: int) -> None:
        """Hold the `found` blocks of a trace that starts or comes back."""
        self._settle()
        prompt = self._prompts[group]
        if prompt.users == 0:
            self._remove(("prompt", group, 0))
        prompt.users += 1
        if found > prompt.shared and prompt.full > prompt.shared:
            copy = next(iter(prompt.copies))
            if prompt.copies[copy] == 0:
                self._remove(("copy", group, copy))
            prompt.copies[copy] += 1
            self._copy_of[trace] = copy
        run = self._remove(("own", trace, 0)) if found > prompt.full else None
        if run is not None and run[1] > found:
            self._append("left", self._numbers, found, run[1])
            self._numbers += 1

    def computed(self, trace: int, group: int, tokens: int) -> None:
        """Note that a trace's prefill has come to `tokens` tokens: its full blocks are cached."""
        prompt = self._prompts[group]
        full = tokens // self.block_size
        prompt.resident = max(prompt.resident, min(prompt.shared, full))
        last_is_full = prompt.full > prompt.shared and full >= prompt.full
        if last_is_full and trace not in self._copy_of:
            self._copy_of[trace] = self._numbers
            prompt.copies[self._numbers] = 1
            self._numbers += 1

    def release(self, trace: int, group: int, held: int, hashed: int) -> None:
        """Free a trace's blocks.

        Args:
            trace: its number.
            group: its group.
            held: blocks it holds.
            hashed: of these, the full ones whose content is in the prefix cache.
        """
        self._settle()
        prompt = self._prompts[group]
        self._blank += held - hashed
        self.free += held - hashed
        if hashed > prompt.full:
            self._append("own", trace, prompt.full, hashed)
        copy = self._copy_of.pop(trace, None)
        if copy is not None:
            prompt.copies[copy] -= 1
            if prompt.copies[copy] == 0:
                self._append("copy", group, 0, 1, copy)
        prompt.users -= 1
        if prompt.users == 0:
            self._append("prompt", group, 0, prompt.resident)

    def _append(self, kind: str, name: int, first: int, end: int, number: int = 0) -> None:
        if end > first:
            self._runs[kind, name, number] = [first, end]
            self.free += end - first

    def _remove(self, key: _Key) -> list[int] | None:
        run = self._runs.pop(key, None)
        if run is not None:
            self.free -= run[1] - run[0]
        return run

    def _settle(self) -> None:
        """Let the blocks taken so far overwrite what they held."""
        blank = min(self._taken, self._blank)
        self._blank -= blank
        self._taken -= blank
        while self._taken:
            key, run = next(iter(self._runs.items()))
            count = min(self._taken, run[1] - run[0])
            run[1] -= count
            self._taken -= count
            if key[0] == "prompt":
                self._prompts[key[1]].resident = run[1]
            elif key[0] == "copy":
                del self._prompts[key[1]].copies[key[2]]
            if run[0] == run[1]:
                del self._runs[key]


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
