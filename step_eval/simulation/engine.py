"""An event simulation of vLLM's scheduler and of the pruning one: no model, no vLLM import.

Follows `Scheduler.schedule` and `update_from_output` of vLLM 0.32 (first come first served, one
full-attention cache group, prefix caching) and `StepScheduler` on top of it; who is stopped and who
waits is decided by `step_infer.policy` itself. Between two events (a trace ends, memory runs short,
a trace is admitted) every running trace makes one token a step, so only the events are computed;
`test_simulate_engine.py` holds the result against the real scheduler classes step by step.

Times: a step's cost is taken to be linear in (1, rows, KV tokens read, prefill tokens); the
simulation returns these sums (`Work`), and `step_eval.simulation.timing` turns them into seconds.
"""

import heapq
from collections import deque
from collections.abc import Sequence

from step_eval.simulation.batch import Batch
from step_eval.simulation.pruning import Pruner
from step_eval.simulation.schedule import (
    EngineShape,
    Pruning,
    Schedule,
    SimulatedTrace,
    Work,
    check_fit,
)


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
    check_fit(shape, traces)
    return _Run(shape, traces, pruning).run()


class _Run:
    """One simulation: vLLM's `schedule` and `update_from_output`."""

    def __init__(
        self, shape: EngineShape, traces: Sequence[SimulatedTrace], pruning: Pruning | None
    ) -> None:
        self.shape, self.traces = shape, traces
        count = len(traces)
        self.batch = Batch(shape, traces)
        self.pool = self.batch.pool
        self.waiting = deque(range(count))
        self.watermark = int(shape.watermark * (shape.kv_blocks + 1))
        self.result = Schedule([0] * count)
        self.pruner = None if pruning is None else Pruner(self.batch, pruning, self.result)
        self.blocked = False  # whether nobody can be admitted before the next event
        self.total = [0.0] * 4
        self.earlier: Work = (0.0, 0.0, 0.0, 0.0)  # all work before the last event step
        self.rows = self.chunk = self.idle_read = 0  # of the running traces in an event step

    def run(self) -> Schedule:
        while self.batch.running or self.waiting:
            if self.blocked:
                self._quiet_steps()
            self._event_step()
        self.result.work = self._work()
        return self.result

    def _quiet_steps(self) -> None:
        """Go on to the next step in which a trace ends or memory is short."""
        batch = self.batch
        while batch.ends and not batch.is_current(batch.ends[0]):
            heapq.heappop(batch.ends)
        if not batch.ends or batch.prefill is not None:
            return
        last = batch.ends[0][0] + self.shape.in_flight - 1  # the last step without an event
        if self.pruner is not None and (turn := self.pruner.next_turn()) is not None:
            last = min(last, turn - 1)
        first, free, count = batch.step + 1, self.pool.free, batch.decoding
        step = batch.step
        grows, size = batch.grows, batch.size
        if last - step >= size and free > count:
            rounds = min((last - step) // size, free // count)
            step += rounds * size
            free -= rounds * count
        while step < last:
            need = grows[(step + 1) % size]
            if need > free:
                break
            free -= need
            step += 1
        steps = step - batch.step
        if steps:
            self.pool.take(self.pool.free - free)
            middle = count * (first + step) / 2 + batch.read
            self._count(steps, steps * count, steps * middle, 0)
            batch.step = step

    def _event_step(self) -> None:
        batch = self.batch
        batch.note_texts()
        batch.step += 1
        held: set[str] = set()
        if self.pruner is not None:
            held = self.pruner.hold(self.pruner.make_room(self._work()), self.waiting)
        preempted = self._grow()
        rows, chunk = self.rows, self.chunk
        admitted = False
        batch.note_texts()
        if not preempted:
            admitted, rows, chunk = self._admit(rows, chunk, held)
        self.earlier = self._work()
        if rows:
            read = batch.decoding * batch.step + batch.read - self.idle_read
            if batch.prefill is not None:
                read += batch.prefill[1]
            self._count(1, rows, read, chunk)
        ended = self._update()
        self.blocked = not (preempted or admitted or ended or chunk or batch.prefill is not None)

    # --- vLLM's schedule ---

    def _grow(self) -> bool:
        """Give the running traces their tokens; preempt from the end where blocks are short."""
        batch = self.batch
        idle = [trace for trace in batch.ending() if batch.done_in_flight(trace)]
        self.idle_read = sum(batch.computed(trace) + 1 for trace in idle)
        needed = batch.growth()
        preempted = False
        if needed > self.pool.free:
            preempted = self._grow_in_turn()
            idle = [trace for trace in idle if batch.filled[trace]]
            self.idle_read = sum(batch.computed(trace) + 1 for trace in idle)
        elif batch.prefill is None:
            self.pool.take(needed)
        else:
            self.pool.take(needed - batch.chunk()[1])
        self.rows, self.chunk = batch.decoding - len(idle), 0
        if batch.prefill is not None:
            self._continue_prefill()
        return preempted

    def _grow_in_turn(self) -> bool:
        batch = self.batch
        preempted = False
        index = 0
        while index < len(batch.running):
            trace = batch.running[index]
            index += 1
            if batch.done_in_flight(trace):
                continue
            if batch.prefill is not None and batch.prefill[0] == trace:
                new = batch.chunk()[1]
            else:
                new = int(batch.computed(trace) % batch.size == 0)
            while new > self.pool.free:
                victim = batch.running.pop()
                self._preempt(victim)
                preempted = True
                if victim == trace:
                    return True
            if batch.prefill is None or batch.prefill[0] != trace:
                self.pool.take(new)
        return preempted

    def _continue_prefill(self) -> None:
        batch = self.batch
        assert batch.prefill is not None
        trace, computed = batch.prefill
        tokens, new = batch.chunk()
        if tokens == 0:
            return
        self.pool.take(new)
        self.chunk += tokens
        self.rows += 1
        batch.prefilled(trace, computed + tokens)

    def _preempt(self, trace: int) -> None:
        batch = self.batch
        self.result.preempted.append(trace)
        new = batch.step - batch.filled[trace] if batch.filled[trace] else 0
        batch.leave(trace, batch.computed(trace), batch.tokens(trace))
        # A token in flight is still delivered, and may be its last.
        batch.known[trace] += new
        self.waiting.appendleft(trace)

    def _admit(self, rows: int, chunk: int, held_groups: set[str]) -> tuple[bool, int, int]:
        batch, shape, pool = self.batch, self.shape, self.pool
        budget = shape.max_num_batched_tokens - rows - chunk
        if chunk:
            budget += 1  # the unfinished prefill's row is no decoding token
        admitted = False
        queue = self.waiting
        if held_groups:
            queue = deque(t for t in self.waiting if self.traces[t].group not in held_groups)
        while budget > 0 and queue and len(batch.running) < shape.max_num_seqs:
            trace = queue[0]
            group = batch.prompt[trace]
            length = batch.length(trace)
            found, held = pool.find(trace, group, length)
            tokens = length - found * batch.size
            if tokens > budget and not shape.chunked_prefill:
                break
            required = -(-length // batch.size) - held
            if required + (self.watermark if batch.running else 0) > pool.free:
                break
            tokens = min(tokens, budget)
            computed = found * batch.size + tokens
            pool.admit(trace, group, found)
            pool.take(-(-computed // batch.size) - found)
            queue.popleft()
            if held_groups:
                self.waiting.remove(trace)
            batch.running.append(trace)
            batch.prefilled(trace, computed)
            budget -= tokens
            chunk += tokens
            rows += 1
            admitted = True
        return admitted, rows, chunk

    # --- vLLM's update_from_output ---

    def _update(self) -> bool:
        """Take in an output: of this step, or under async scheduling of the one before."""
        batch = self.batch
        known = batch.step - self.shape.in_flight
        ended = False
        while batch.ends and batch.ends[0][0] <= known:
            end = heapq.heappop(batch.ends)
            if batch.is_current(end):
                self._finish(end[1])
                ended = True
        if self.waiting and self.shape.in_flight:
            for trace in [t for t in self.waiting if batch.known[t] >= self.traces[t].tokens]:
                self.waiting.remove(trace)
                self._end(trace)
                ended = True
        return ended

    def _finish(self, trace: int) -> None:
        whole = self.traces[trace]
        self.batch.running.remove(trace)
        # Under async scheduling one more step is on its way, unless the end was foreseen.
        extra = self.shape.in_flight > 0 and not whole.cut
        self.batch.leave(trace, whole.prompt_tokens + whole.tokens - 1 + extra, whole.tokens)
        self._end(trace)

    def _end(self, trace: int) -> None:
        work = self.earlier if self.shape.in_flight else self._work()
        self.result.end(trace, self.traces[trace].tokens, self.batch.moment(self.result, work, 1))
        if self.pruner is not None:
            self.pruner.finished(trace)

    # --- accounts ---

    def _count(self, steps: int, rows: float, read: float, chunk: int) -> None:
        result = self.result
        running, waiting = len(self.batch.running), len(self.waiting)
        for index, value in enumerate((steps, rows, read, chunk)):
            self.total[index] += value
            result.running[index] += running * value
            result.waiting[index] += waiting * value
        use = 1 - self.pool.free / self.pool.blocks
        result.peak_kv_use = max(result.peak_kv_use, use)

    def _work(self) -> Work:
        steps, rows, read, chunk = self.total
        return steps, rows, read, chunk
