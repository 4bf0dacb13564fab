"""The adapter's own work in a simulated engine: `StepScheduler._make_room` and `_hold`."""

from collections.abc import Collection
from itertools import accumulate
from math import isfinite

from step_eval.methods.victims import victim_rank
from step_eval.simulation.batch import Batch
from step_eval.simulation.schedule import Pruning, Schedule, Work, steps_seen
from step_infer import policy
from step_infer.scorer.aggregate import AGGREGATORS


class Pruner:
    """Stops traces before a step whose growth would not fit; `step_infer.policy` says which.

    Args:
        batch: the engine's traces.
        pruning: the adapter's settings.
        result: gets the pruned traces.
    """

    def __init__(self, batch: Batch, pruning: Pruning, result: Schedule) -> None:
        self.batch, self.pruning, self.result = batch, pruning, result
        self.aggregate = AGGREGATORS[pruning.aggregator]
        self.confidence_sums: list[list[float]] = []
        if pruning.victim == "least-confident":
            self.confidence_sums = [list(accumulate(trace.confidences)) for trace in batch.traces]
        self.kept: dict[str, int] = {}
        """Traces of each group that run, wait or have finished with a step score."""
        for trace in batch.traces:
            self.kept[trace.group] = self.kept.get(trace.group, 0) + 1
        self.pruned_groups: set[str] = set()
        """Groups that have lost traces since memory was last ample."""
        self.held_since: dict[str, int] = {}
        """Groups that wait, and the step in which each was first held back."""

    def make_room(self, work: Work) -> int:
        """Prune until this step's growth fits.

        Args:
            work: all work so far.

        Returns:
            The KV blocks that it leaves free.
        """
        batch = self.batch
        free = batch.pool.free
        shape = batch.shape
        budget = shape.max_num_batched_tokens
        if free < len(batch.running) + -(-budget // batch.size):
            while (needed := batch.growth()) > batch.pool.free:
                victim = policy.pick_victim(self._prunable(), self.kept)
                if victim is None:
                    break
                self._prune(int(victim.request_id), work)
            free = batch.pool.free - needed
        return free

    def hold(self, free: int, waiting: Collection[int]) -> set[str]:
        """Return the groups that are held back in this step.

        Args:
            free: KV blocks that the step's growth leaves free.
            waiting: the traces that wait.
        """
        if not self.pruned_groups and not self.held_since:
            return set()
        batch = self.batch
        self.pruned_groups &= {batch.traces[trace].group for trace in batch.running}
        groups = {batch.traces[trace].group for trace in waiting}
        admitted, self.held_since = policy.admit(
            groups,
            self.held_since,
            batch.step,
            self.pruned_groups,
            policy.Memory(free, batch.shape.kv_blocks + 1, self.pruning.resume_free),
            self.pruning.max_held_steps,
        )
        return groups - admitted

    def next_turn(self) -> int | None:
        """Return the next step after this one in which a group reaches the limit of its wait."""
        limit = self.pruning.max_held_steps
        if limit is None:
            return None
        turns = (since + limit for since in self.held_since.values())
        return min((turn for turn in turns if turn > self.batch.step), default=None)

    def finished(self, trace: int) -> None:
        """Note that a trace has ended by itself."""
        whole = self.batch.traces[trace]
        if not whole.positions:
            self.kept[whole.group] -= 1

    def _prunable(self) -> list[policy.RunningTrace]:
        batch, pruning = self.batch, self.pruning
        return [
            policy.RunningTrace(
                str(trace),
                batch.traces[trace].group,
                self._rank(trace),
                self._scored(trace),
                batch.held(trace),
                trace,
                pruning.min_steps,
                pruning.min_keep,
            )
            for trace in batch.running
            if not batch.done_in_flight(trace)
        ]

    def _scored(self, trace: int) -> int:
        batch = self.batch
        return steps_seen(batch.traces[trace].positions, batch.tokens(trace))

    def _rank(self, trace: int) -> float | None:
        """Return the number whose lowest is stopped; None before the first step score."""
        batch, count = self.batch, self._scored(trace)
        if count == 0:
            return None
        if self.pruning.victim == "score":
            return self.aggregate(batch.traces[trace].scores[:count])
        return victim_rank(
            self.pruning.victim,
            batch.tokens(trace),
            self._confidence(trace),
            batch.traces[trace].rank,
        )

    def _confidence(self, trace: int) -> float | None:
        tokens = self.batch.tokens(trace)
        if not self.confidence_sums or not tokens:
            return None
        mean = self.confidence_sums[trace][tokens - 1] / tokens
        return mean if isfinite(mean) else None

    def _prune(self, trace: int, work: Work) -> None:
        batch = self.batch
        tokens = batch.tokens(trace)
        batch.running.remove(trace)
        batch.leave(trace, batch.computed(trace), tokens)
        group = batch.traces[trace].group
        self.kept[group] -= 1
        self.pruned_groups.add(group)
        self.result.pruned.append(trace)
        self.result.end(trace, tokens, batch.moment(self.result, work, 0))
