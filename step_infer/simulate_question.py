"""One question, simulated with one engine and one method: schedule, vote, figures."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from step_infer.aggregate import AGGREGATORS
from step_infer.eval_votes import vote_rule
from step_infer.simulate_engine import simulate
from step_infer.simulate_schedule import EngineShape, Pruning, Schedule
from step_infer.simulate_timing import Timing
from step_infer.simulate_world import PoolTrace, block_contents, simulated_traces
from step_infer.voting import vote

FIGURES = ("accuracy", "seconds", "tokens", "preemptions", "pruned", "waiting_share")
"""Figures of a question; names as in `eval_format.HEADINGS`."""

STOCK = ("sc", "sc-score")
"""Methods that never stop a trace."""


@dataclass(frozen=True)
class Setting:
    """How a method is simulated."""

    method: str
    """A name of `simulate_config.METHODS`."""
    shape: EngineShape
    pruning: Pruning
    """Ignored by sc."""
    vote: str = "score"
    """Vote rule of every method but sc."""


def run_question(
    setting: Setting,
    traces: Sequence[PoolTrace],
    prompt_tokens: int,
    scores: Sequence[Sequence[float | None]] | None = None,
) -> Schedule:
    """Return the schedule of a question's traces under a method.

    Args:
        setting: engine and method.
        traces: the question's traces.
        prompt_tokens: tokens of their prompt.
        scores: step scores that stand for the traces' own.
    """
    simulated = simulated_traces(
        traces,
        prompt_tokens,
        scores,
        block_contents(traces, prompt_tokens, setting.shape.block_size),
    )
    if setting.method in STOCK:
        return simulate(setting.shape, simulated)
    rank = _rank(setting.method, traces)
    pruning = Pruning(
        setting.pruning.aggregator,
        setting.pruning.min_keep,
        setting.pruning.min_steps,
        setting.pruning.resume_free,
        rank,
    )
    return simulate(setting.shape, simulated, pruning)


def _rank(method: str, traces: Sequence[PoolTrace]) -> Callable[[int, int], float] | None:
    """Return what a victim policy puts in the place of the score; None for the score itself."""
    if method == "random":
        return lambda trace, tokens: zlib.crc32(f"{trace} {traces[trace].tokens}".encode())
    if method == "youngest":
        return lambda trace, tokens: tokens
    if method == "longest":
        return lambda trace, tokens: -tokens
    if method == "oracle":
        return lambda trace, tokens: float(traces[trace].right)
    return None


def figures(
    schedule: Schedule,
    setting: Setting,
    traces: Sequence[PoolTrace],
    timing: Timing,
    scores: Sequence[Sequence[float | None]] | None = None,
) -> dict[str, float]:
    """Return a question's figures by the names of `FIGURES`; pruned traces do not vote."""
    pruned = set(schedule.pruned)
    voters = [index for index in range(len(traces)) if index not in pruned]
    weights = [1.0] * len(voters)
    if setting.method != "sc":
        aggregate = AGGREGATORS[setting.pruning.aggregator]
        found: list[float | None] = []
        for index in voters:
            own = traces[index].scores if scores is None else scores[index]
            finite = [score for score in own if score is not None]
            found.append(aggregate(finite) if finite else None)
        weights = vote_rule(setting.vote)(found)
    winner = vote([traces[index].answer for index in voters], weights).answer
    running, waiting = timing.seconds(schedule.running), timing.seconds(schedule.waiting)
    return {
        "accuracy": float(any(t.right and t.answer == winner for t in traces)),
        "seconds": max(timing.seconds(work) for work in schedule.ended_after.values()),
        "tokens": float(sum(schedule.tokens)),
        "preemptions": float(len(schedule.preempted)),
        "pruned": float(len(pruned)),
        "waiting_share": waiting / (running + waiting) if running + waiting > 0 else 0.0,
    }
