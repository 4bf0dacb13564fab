"""The traces in a simulated engine: which run, how far each is, and the KV blocks they hold.

A decoding trace makes one token a step, so its state follows from the step's number alone.
"""

import heapq
from collections.abc import Sequence

from step_eval.simulation.blocks import BlockPool, SharedBlockPool
from step_eval.simulation.schedule import EngineShape, Moment, Schedule, SimulatedTrace, Work


class Batch:
    """The running traces at one step, known by their numbers.

    Args:
        shape: the engine.
        traces: all traces; those of one group have the same prompt.
    """

    def __init__(self, shape: EngineShape, traces: Sequence[SimulatedTrace]) -> None:
        self.shape, self.traces = shape, traces
        count = len(traces)
        prompts = {trace.group: trace.prompt_tokens for trace in traces}
        groups = {name: number for number, name in enumerate(prompts)}
        self.prompt = [groups[trace.group] for trace in traces]
        """Number of each trace's prompt."""
        self.size = shape.block_size
        content = [trace.content for trace in traces if trace.content is not None]
        self.texts: SharedBlockPool | None = None
        """The pool, where texts are known."""
        self.pool: BlockPool | SharedBlockPool
        if content and len(content) == count:
            self.pool = self.texts = SharedBlockPool(shape.kv_blocks, self.size, content)
        else:
            self.pool = BlockPool(shape.kv_blocks, self.size, list(prompts.values()))
        self.step = 0
        """The step in work, or the last one done."""
        self.running: list[int] = []
        self.known = [0] * count
        """Tokens of each trace when it was last admitted."""
        self.filled = [0] * count
        """Step that completed its last prefill; 0 where it does not decode."""
        self.end = [0] * count
        """Step whose output is its last token."""
        self.ends: list[tuple[int, int]] = []
        """A heap of (step, trace), some of them outdated."""
        self.decoding = 0
        self.prefill: list[int] | None = None
        """[trace, computed tokens] of the unfinished prefill; it runs last."""
        self.grows = [0] * self.size
        """Decoding traces by the step, modulo the block size, that needs a block."""
        self.read = 0
        """KV tokens of the decoding traces are decoding * step + read."""

    # --- what a trace is like in this step, before it is scheduled ---

    def tokens(self, trace: int) -> int:
        """Return its tokens whose output the scheduler has."""
        if not self.filled[trace]:
            return self.known[trace]
        return self.known[trace] + max(0, self.step - self.shape.in_flight - self.filled[trace])

    def length(self, trace: int) -> int:
        """Return its tokens when it was last admitted, prompt included."""
        return self.traces[trace].prompt_tokens + self.known[trace]

    def computed(self, trace: int) -> int:
        """Return its tokens that are in the KV cache, prompt included."""
        if self.prefill is not None and self.prefill[0] == trace:
            return self.prefill[1]
        return self.length(trace) + self.step - 1 - self.filled[trace]

    def held(self, trace: int) -> int:
        """Return the blocks it holds."""
        return -(-self.computed(trace) // self.size)

    def done_in_flight(self, trace: int) -> bool:
        """Whether its last token is in flight and the engine knows that it is the last."""
        return (
            self.shape.in_flight > 0
            and self.traces[trace].cut
            and self.filled[trace] > 0
            and self.end[trace] < self.step
        )

    def is_current(self, end: tuple[int, int]) -> bool:
        """Whether an entry of `ends` still holds."""
        step, trace = end
        return self.filled[trace] > 0 and self.end[trace] == step

    # --- what this step needs ---

    def growth(self) -> int:
        """Return the blocks that the running traces need in this step."""
        needed = self.grows[self.step % self.size]
        for trace in self.ending():
            if self.done_in_flight(trace) and self.computed(trace) % self.size == 0:
                needed -= 1
        if self.prefill is not None:
            needed += self.chunk()[1]
        return needed

    def chunk(self) -> tuple[int, int]:
        """Return the tokens and new blocks of this step's part of the unfinished prefill."""
        assert self.prefill is not None
        trace, computed = self.prefill
        idle = sum(self.done_in_flight(other) for other in self.ending())
        budget = self.shape.max_num_batched_tokens - (self.decoding - idle)
        tokens = min(self.length(trace) - computed, budget)
        return tokens, -(-(computed + tokens) // self.size) - self.held(trace)

    def ending(self) -> list[int]:
        """Return the running traces whose last token is in flight."""
        last = self.step - 1
        if not self.ends or self.ends[0][0] > last:
            return []
        return [t for end, t in self.ends if end == last and self.is_current((end, t))]

    # --- what changes ---

    def prefilled(self, trace: int, computed: int) -> None:
        """Note that a prefill has come to `computed` tokens in this step."""
        self.pool.computed(trace, self.prompt[trace], computed)
        length = self.length(trace)
        if computed < length:
            self.prefill = [trace, computed]
            return
        self.prefill = None
        self.filled[trace] = self.step
        self.end[trace] = self.step + self.traces[trace].tokens - self.known[trace] - 1
        heapq.heappush(self.ends, (self.end[trace], trace))
        self.decoding += 1
        self.read += length - self.step
        self.grows[(self.step + 1 - length) % self.size] += 1

    def leave(self, trace: int, computed: int, tokens: int) -> None:
        """Free a trace's blocks and forget its decoding or prefill.

        Args:
            trace: its number.
            computed: its computed tokens.
            tokens: its generated tokens whose output the scheduler has.
        """
        length = self.length(trace)
        if self.prefill is not None and self.prefill[0] == trace:
            self.prefill = None
            hashed = computed // self.size
        else:
            known = self.traces[trace].prompt_tokens + tokens
            hashed = max((known - 1) // self.size, length // self.size)
            self.decoding -= 1
            self.read -= length - self.filled[trace]
            self.grows[(self.filled[trace] + 1 - length) % self.size] -= 1
        self.pool.release(trace, self.prompt[trace], -(-computed // self.size), hashed)
        self.filled[trace] = 0

    def moment(self, result: Schedule, work: Work, outputs: int) -> Moment:
        """Return how the engine stands.

        Args:
            result: the schedule so far.
            work: all work so far.
            outputs: of this step that the scheduler has: 0 while it is scheduled, 1 after it.
        """
        return Moment(
            self.step - self.shape.in_flight - 1 + outputs,
            list(self.known),
            list(self.filled),
            len(result.pruned),
            len(result.preempted),
            work,
            tuple(result.running),
            tuple(result.waiting),
            result.peak_kv_use,
        )

    def note_texts(self) -> None:
        """Cache the blocks that running traces have filled, in the order in which they did."""
        if self.texts is None:
            return
        filled = []
        for place, trace in enumerate(self.running):
            if self.filled[trace] in (0, self.step):
                continue
            # The step after whose schedule a block is cached has its last token among the known.
            offset = self.shape.in_flight + self.filled[trace] - self.length(trace)
            block = self.texts.cached(trace) + 1
            while (step := block * self.size + offset) <= self.step:
                filled.append((step, place, trace))
                block += 1
        self.texts.fill(trace for _, _, trace in sorted(filled))
