"""An event simulation of vLLM's scheduler and of the pruning one: no model, no vLLM import.

Follows `Scheduler.schedule` and `update_from_output` of vLLM 0.32 (first come first served, one
full-attention cache group, prefix caching) and `StepScheduler` on top of it; who is stopped and who
waits is decided by `step_infer.policy` itself. Between two events (a trace ends, memory runs short,
a trace is admitted) every running trace makes one token a step, so only the events are computed;
`tests/test_simulate_engine.py` holds the result against the real scheduler classes step by step.

Times: a step's cost is taken to be linear in (1, rows, KV tokens read, prefill tokens); the
simulation returns these sums (`Work`), and `simulate_timing` turns them into seconds.
"""

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from step_infer import policy
from step_infer.aggregate import AGGREGATORS
from step_infer.errors import InputError
from step_infer.simulate_blocks import BlockPool
from step_infer.simulate_shared_blocks import SharedBlockPool

Work = tuple[float, float, float, float]
"""Sums over steps: steps, rows (running traces), KV tokens read, prefill tokens computed."""


@dataclass(frozen=True)
class EngineShape:
    """What decides a vLLM engine's schedule."""

    kv_blocks: int
    """KV blocks that traces can use; vLLM has one more for itself."""
    block_size: int = 16
    """Tokens a block holds."""
    max_num_seqs: int = 256
    """Traces that run at once."""
    max_num_batched_tokens: int = 8192
    """Tokens a step computes at most."""
    chunked_prefill: bool = True
    """Whether a prefill may be spread over steps."""
    watermark: float = 0.0
    """Part of the blocks that must stay free when a trace is admitted (vLLM's own default)."""
    in_flight: int = 1
    """Outputs still unknown when a step is scheduled: 1 under async scheduling, otherwise 0."""


@dataclass(frozen=True)
class SimulatedTrace:
    """What a trace would do if nothing stopped it."""

    group: str
    """Its question."""
    prompt_tokens: int
    tokens: int
    """Tokens T it generates."""
    positions: Sequence[int] = ()
    """Boundaries with a finite step score, as indices of generated tokens [S], ascending."""
    scores: Sequence[float] = ()
    """Their step scores [S]."""
    cut: bool = False
    """Whether it ends for its length, which the engine knows before the last token is there."""
    content: Sequence[int] | None = None
    """A number for each full block of prompt and response; equal ones stand for equal text up to
    the block's end. None: it shares no text with others but the prompt. All traces or none."""


@dataclass(frozen=True)
class Pruning:
    """The settings of `StepScheduler` that decide whom it stops; see `StepSettings`."""

    aggregator: str = "mean"
    min_keep: int = 1
    min_steps: int = 1
    resume_free: float = 0.5
    rank: Callable[[int, int], float] | None = None
    """What stands for the trace score in the choice of the victim, of a trace's number and its
    tokens so far; None is the score itself."""


@dataclass
class Schedule:
    """What came of N traces."""

    tokens: list[int]
    """Generated tokens of each trace [N], of a pruned one those that its client got."""
    scored: list[int]
    """Step scores of each trace that the scheduler has seen [N]."""
    order: list[int] = field(default_factory=list)
    """Traces in the order in which they ended."""
    pruned: list[int] = field(default_factory=list)
    """Pruned traces in the order in which they were stopped."""
    preempted: list[int] = field(default_factory=list)
    """Preempted traces, once for each time."""
    work: Work = (0.0, 0.0, 0.0, 0.0)
    """All steps; the first number counts them."""
    ended_after: dict[int, Work] = field(default_factory=dict)
    """For each trace, all work up to its end."""
    running: list[float] = field(default_factory=lambda: [0.0] * 4)
    """Work weighted with the traces that ran meanwhile."""
    waiting: list[float] = field(default_factory=lambda: [0.0] * 4)
    """Work weighted with the traces that waited meanwhile."""
    peak_kv_use: float = 0.0
    """Largest part of the blocks in use at the end of a step."""


def simulate(
    shape: EngineShape, traces: Sequence[SimulatedTrace], pruning: Pruning | None = None
) -> Schedule:
    """Run traces that are all submitted at once, in their order.

    Args:
        shape: the engine.
        traces: the traces; those of one group have the same prompt.
        pruning: how the adapter prunes; None is stock vLLM.

    Raises:
        InputError: a trace does not fit the cache on its own, or the shape is one vLLM refuses.
    """
    return _Run(shape, traces, pruning).run()


class _Run:
    """One simulation. A decoding trace's state follows from the step's number alone."""

    def __init__(
        self, shape: EngineShape, traces: Sequence[SimulatedTrace], pruning: Pruning | None
    ) -> None:
        _check(shape, traces)
        self.shape, self.traces, self.pruning = shape, traces, pruning
        count = len(traces)
        prompts = {trace.group: trace.prompt_tokens for trace in traces}
        groups = {name: number for number, name in enumerate(prompts)}
        self.prompt = [groups[trace.group] for trace in traces]
        self.size = shape.block_size
        content = [trace.content for trace in traces if trace.content is not None]
        self.texts = None
        self.pool: BlockPool | SharedBlockPool
        if content and len(content) == count:
            self.pool = self.texts = SharedBlockPool(shape.kv_blocks, self.size, content)
        else:
            self.pool = BlockPool(shape.kv_blocks, self.size, list(prompts.values()))
        self.watermark = int(shape.watermark * (shape.kv_blocks + 1))
        self.known = [0] * count  # tokens when it was last admitted
        self.filled = [0] * count  # step that completed its last prefill
        self.end = [0] * count  # step whose output is its last token
        self.waiting = deque(range(count))
        self.running: list[int] = []
        self.decoding = 0
        self.prefill: list[int] | None = None  # [trace, computed tokens]; it runs last
        self.grows = [0] * self.size  # decoding traces by the step, modulo B, that needs a block
        self.read = 0  # KV tokens of the decoding traces are decoding * step + read
        self.kept = dict.fromkeys(prompts, 0)
        for trace in traces:
            self.kept[trace.group] += 1
        self.pressed: set[str] = set()
        self.ends: list[tuple[int, int]] = []  # (step, trace), some outdated
        self.step = 0
        self.blocked = False  # whether nobody can be admitted before the next event
        self.total = [0.0] * 4
        self.earlier: Work = (0.0, 0.0, 0.0, 0.0)  # all work before the last event step
        self.rows = self.chunk = self.idle_read = 0  # of the running traces in an event step
        self.result = Schedule([0] * count, [0] * count)
        self.aggregate = None if pruning is None else AGGREGATORS[pruning.aggregator]

    def run(self) -> Schedule:
        result = self.result
        while self.running or self.waiting:
            if self.blocked:
                self._quiet_steps()
            self._event_step()
        result.work = self._work()
        return result

    def _quiet_steps(self) -> None:
        """Go on to the next step in which a trace ends or memory is short."""
        while self.ends and not self._is_current(self.ends[0]):
            heapq.heappop(self.ends)
        if not self.ends or self.prefill is not None:
            return
        last = self.ends[0][0] + self.shape.in_flight - 1  # the last step without an event
        first, free, count = self.step + 1, self.pool.free, self.decoding
        step = self.step
        if last - step >= self.size and free > count:
            rounds = min((last - step) // self.size, free // count)
            step += rounds * self.size
            free -= rounds * count
        grows, size = self.grows, self.size
        while step < last:
            need = grows[(step + 1) % size]
            if need > free:
                break
            free -= need
            step += 1
        steps = step - self.step
        if steps:
            self.pool.take(self.pool.free - free)
            middle = count * (first + step) / 2 + self.read
            self._count(steps, steps * count, steps * middle, 0)
            self.step = step

    def _event_step(self) -> None:
        self._note_texts()
        self.step += 1
        hold = False
        if self.pruning is not None:
            hold = self._make_room()
        preempted = self._grow()
        rows, chunk = self.rows, self.chunk
        admitted = False
        self._note_texts()
        if not preempted and not hold:
            admitted, rows, chunk = self._admit(rows, chunk)
        self.earlier = self._work()
        if rows:
            read = self.decoding * self.step + self.read - self.idle_read
            if self.prefill is not None:
                read += self.prefill[1]
            self._count(1, rows, read, chunk)
        ended = self._update()
        self.blocked = not (preempted or admitted or ended or chunk or self.prefill is not None)

    # --- what a trace is like in this step, before it is scheduled ---

    def _tokens(self, trace: int) -> int:
        """Return its tokens whose output the scheduler has."""
        if not self.filled[trace]:
            return self.known[trace]
        return self.known[trace] + max(0, self.step - self.shape.in_flight - self.filled[trace])

    def _computed(self, trace: int) -> int:
        if self.prefill is not None and self.prefill[0] == trace:
            return self.prefill[1]
        length = self.traces[trace].prompt_tokens + self.known[trace]
        return length + self.step - 1 - self.filled[trace]

    def _held(self, trace: int) -> int:
        return -(-self._computed(trace) // self.size)

    def _done_in_flight(self, trace: int) -> bool:
        """Whether its last token is in flight and the engine knows that it is the last."""
        return (
            self.shape.in_flight > 0
            and self.traces[trace].cut
            and self.filled[trace] > 0
            and self.end[trace] < self.step
        )

    def _is_current(self, end: tuple[int, int]) -> bool:
        step, trace = end
        return self.filled[trace] > 0 and self.end[trace] == step

    # --- the adapter's own work: StepScheduler._make_room ---

    def _make_room(self) -> bool:
        pruning, pool = self.pruning, self.pool
        assert pruning is not None
        free = pool.free
        shape = self.shape
        budget = shape.max_num_batched_tokens
        if free < len(self.running) + -(-budget // self.size):
            while (needed := self._growth()) > pool.free:
                victim = policy.pick_victim(self._prunable(pruning), self.kept)
                if victim is None:
                    break
                self._prune(int(victim.request_id))
            free = pool.free - needed
        if not self.pressed:
            return False
        self.pressed &= {self.traces[trace].group for trace in self.running}
        total = shape.kv_blocks + 1
        return not policy.admit(free, total, pruning.resume_free, bool(self.pressed))

    def _growth(self) -> int:
        needed = self.grows[self.step % self.size]
        for trace in self._ending():
            if self._done_in_flight(trace) and self._computed(trace) % self.size == 0:
                needed -= 1
        if self.prefill is not None:
            needed += self._chunk()[1]
        return needed

    def _chunk(self) -> tuple[int, int]:
        """Return the tokens and new blocks of this step's part of the unfinished prefill."""
        assert self.prefill is not None
        trace, computed = self.prefill
        idle = sum(self._done_in_flight(other) for other in self._ending())
        budget = self.shape.max_num_batched_tokens - (self.decoding - idle)
        length = self.traces[trace].prompt_tokens + self.known[trace]
        tokens = min(length - computed, budget)
        return tokens, -(-(computed + tokens) // self.size) - self._held(trace)

    def _ending(self) -> list[int]:
        """Return the running traces whose last token is in flight."""
        last = self.step - 1
        return [t for end, t in self._due(last) if end == last and self.filled[t] > 0]

    def _due(self, step: int) -> list[tuple[int, int]]:
        if not self.ends or self.ends[0][0] > step:
            return []
        return [end for end in self.ends if end[0] <= step and self._is_current(end)]

    def _prunable(self, pruning: Pruning) -> list[policy.RunningTrace]:
        return [
            policy.RunningTrace(
                str(trace),
                self.traces[trace].group,
                self._score(trace, pruning),
                self._scored(trace),
                self._held(trace),
                trace,
                pruning.min_steps,
                pruning.min_keep,
            )
            for trace in self.running
            if not self._done_in_flight(trace)
        ]

    def _scored(self, trace: int) -> int:
        """Return its step scores so far: a boundary's comes with the token after it."""
        seen = self._tokens(trace) - 1
        positions = self.traces[trace].positions
        count = self.result.scored[trace]
        while count < len(positions) and positions[count] < seen:
            count += 1
        self.result.scored[trace] = count
        return count

    def _score(self, trace: int, pruning: Pruning) -> float | None:
        count = self._scored(trace)
        if count == 0:
            return None
        if pruning.rank is not None:
            return pruning.rank(trace, self._tokens(trace))
        assert self.aggregate is not None
        return self.aggregate(self.traces[trace].scores[:count])

    def _prune(self, trace: int) -> None:
        tokens = self._tokens(trace)
        self.running.remove(trace)
        self._leave(trace, self._computed(trace), tokens)
        group = self.traces[trace].group
        self.kept[group] -= 1
        self.pressed.add(group)
        self.result.tokens[trace] = tokens
        self.result.pruned.append(trace)
        self.result.order.append(trace)
        self.result.ended_after[trace] = self._work()

    # --- vLLM's schedule ---

    def _grow(self) -> bool:
        """Give the running traces their tokens; preempt from the end where blocks are short."""
        idle = [trace for trace in self._ending() if self._done_in_flight(trace)]
        self.idle_read = sum(self._computed(trace) + 1 for trace in idle)
        needed = self._growth()
        preempted = False
        if needed > self.pool.free:
            preempted = self._grow_in_turn()
            idle = [trace for trace in idle if self.filled[trace]]
            self.idle_read = sum(self._computed(trace) + 1 for trace in idle)
        elif self.prefill is None:
            self.pool.take(needed)
        else:
            self.pool.take(needed - self._chunk()[1])
        self.rows, self.chunk = self.decoding - len(idle), 0
        if self.prefill is not None:
            self._continue_prefill()
        return preempted

    def _grow_in_turn(self) -> bool:
        preempted = False
        index = 0
        while index < len(self.running):
            trace = self.running[index]
            index += 1
            if self._done_in_flight(trace):
                continue
            if self.prefill is not None and self.prefill[0] == trace:
                new = self._chunk()[1]
            else:
                new = int(self._computed(trace) % self.size == 0)
            while new > self.pool.free:
                victim = self.running.pop()
                self._preempt(victim)
                preempted = True
                if victim == trace:
                    return True
            if self.prefill is None or self.prefill[0] != trace:
                self.pool.take(new)
        return preempted

    def _continue_prefill(self) -> None:
        assert self.prefill is not None
        trace, computed = self.prefill
        tokens, new = self._chunk()
        if tokens == 0:
            return
        self.pool.take(new)
        self.chunk += tokens
        self.rows += 1
        self._prefilled(trace, computed + tokens)

    def _prefilled(self, trace: int, computed: int) -> None:
        """Note that a prefill has come to `computed` tokens in this step."""
        self.pool.computed(trace, self.prompt[trace], computed)
        length = self.traces[trace].prompt_tokens + self.known[trace]
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

    def _leave(self, trace: int, computed: int, tokens: int) -> None:
        """Free a running trace's blocks and forget its decoding or prefill.

        Args:
            trace: its number.
            computed: its computed tokens.
            tokens: its generated tokens whose output the scheduler has.
        """
        length = self.traces[trace].prompt_tokens + self.known[trace]
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

    def _preempt(self, trace: int) -> None:
        self.result.preempted.append(trace)
        new = self.step - self.filled[trace] if self.filled[trace] else 0
        self._leave(trace, self._computed(trace), self._tokens(trace))
        # A token in flight is still delivered, and may be its last.
        self.known[trace] += new
        self.waiting.appendleft(trace)

    def _note_texts(self) -> None:
        """Cache the blocks that running traces have filled, in the order in which they did."""
        if self.texts is None:
            return
        filled = []
        for place, trace in enumerate(self.running):
            if self.filled[trace] in (0, self.step):
                continue
            # The step after whose schedule a block is cached has its last token among the known.
            length = self.traces[trace].prompt_tokens + self.known[trace]
            offset = self.shape.in_flight + self.filled[trace] - length
            block = self.texts.cached(trace) + 1
            while (step := block * self.size + offset) <= self.step:
                filled.append((step, place, trace))
                block += 1
        self.texts.fill(trace for _, _, trace in sorted(filled))

    def _admit(self, rows: int, chunk: int) -> tuple[bool, int, int]:
        shape, pool = self.shape, self.pool
        budget = shape.max_num_batched_tokens - rows - chunk
        if chunk:
            budget += 1  # the unfinished prefill's row is no decoding token
        admitted = False
        while budget > 0 and self.waiting and len(self.running) < shape.max_num_seqs:
            trace = self.waiting[0]
            group = self.prompt[trace]
            length = self.traces[trace].prompt_tokens + self.known[trace]
            found, held = pool.find(trace, group, length)
            tokens = length - found * self.size
            if tokens > budget and not shape.chunked_prefill:
                break
            required = -(-length // self.size) - held
            if required + (self.watermark if self.running else 0) > pool.free:
                break
            tokens = min(tokens, budget)
            computed = found * self.size + tokens
            pool.admit(trace, group, found)
            pool.take(-(-computed // self.size) - found)
            self.waiting.popleft()
            self.running.append(trace)
            self._prefilled(trace, computed)
            budget -= tokens
            chunk += tokens
            rows += 1
            admitted = True
        return admitted, rows, chunk

    # --- vLLM's update_from_output ---

    def _update(self) -> bool:
        """Take in an output: of this step, or under async scheduling of the one before."""
        known = self.step - self.shape.in_flight
        ended = False
        while self.ends and self.ends[0][0] <= known:
            end = heapq.heappop(self.ends)
            if self._is_current(end):
                self._finish(end[1])
                ended = True
        if self.waiting and self.shape.in_flight:
            for trace in [t for t in self.waiting if self.known[t] >= self.traces[t].tokens]:
                self.waiting.remove(trace)
                self._end(trace)
                ended = True
        return ended

    def _finish(self, trace: int) -> None:
        self.running.remove(trace)
        length = self.traces[trace].prompt_tokens + self.traces[trace].tokens
        # Under async scheduling one more step is on its way, unless the end was foreseen.
        extra = self.shape.in_flight > 0 and not self.traces[trace].cut
        self._leave(trace, length - 1 + extra, self.traces[trace].tokens)
        self._end(trace)

    def _end(self, trace: int) -> None:
        self.result.tokens[trace] = self.traces[trace].tokens
        self.result.order.append(trace)
        self.result.ended_after[trace] = self.earlier if self.shape.in_flight else self._work()
        self.result.scored[trace] = len(self.traces[trace].positions)

    # --- accounts ---

    def _count(self, steps: int, rows: float, read: float, chunk: int) -> None:
        result = self.result
        running, waiting = len(self.running), len(self.waiting)
        for index, value in enumerate((steps, rows, read, chunk)):
            self.total[index] += value
            result.running[index] += running * value
            result.waiting[index] += waiting * value
        use = 1 - self.pool.free / self.pool.blocks
        result.peak_kv_use = max(result.peak_kv_use, use)

    def _work(self) -> Work:
        steps, rows, read, chunk = self.total
        return steps, rows, read, chunk


def _check(shape: EngineShape, traces: Sequence[SimulatedTrace]) -> None:
    if shape.max_num_batched_tokens < shape.max_num_seqs:
        raise InputError(
            f"Expected max_num_batched_tokens of at least max_num_seqs ({shape.max_num_seqs}), "
            f"found {shape.max_num_batched_tokens}."
        )
    longest = max((trace.prompt_tokens + trace.tokens for trace in traces), default=0)
    if longest > shape.kv_blocks * shape.block_size:
        raise InputError(
            f"Expected a KV cache that holds the longest trace ({longest:,} tokens), found "
            f"{shape.kv_blocks * shape.block_size:,} tokens. Hint: raise the KV budget."
        )
    if not shape.chunked_prefill and longest > shape.max_num_batched_tokens:
        raise InputError(
            f"Expected max_num_batched_tokens of at least the longest trace ({longest:,} tokens) "
            f"without chunked prefill, found {shape.max_num_batched_tokens:,}."
        )
