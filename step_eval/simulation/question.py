"""One question, simulated with one engine and one method: schedule, vote, figures."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from step_eval.methods.victims import ABLATIONS, oracle_ranks, random_ranks
from step_eval.recorded.traces import PoolTrace
from step_eval.replay.signals import RecordedSteps, signals
from step_eval.simulation.engine import simulate
from step_eval.simulation.schedule import EngineShape, Pruning, Schedule
from step_eval.simulation.timing import Timing
from step_eval.simulation.traces import block_contents, simulated_traces
from step_eval.votes import vote_rule
from step_infer.client.answers import vote
from step_infer.scorer.aggregate import AGGREGATORS

FIGURES = ("accuracy", "seconds", "tokens", "preemptions", "pruned", "waiting_share")
"""Figures of a question; names as in `report.words.HEADINGS`."""

STOCK = ("sc", "sc-score")
"""Methods that never stop a trace."""


@dataclass(frozen=True)
class Setting:
    """How a method is simulated."""

    method: str
    """A name of `config.METHODS`."""
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
    if setting.method not in ABLATIONS:
        return simulate(setting.shape, simulated, setting.pruning)
    victim = ABLATIONS[setting.method].victim
    if setting.method == "random":
        lengths = " ".join(str(trace.tokens) for trace in traces)  # what tells the question apart
        ranks = random_ranks(0, lengths, len(traces))
        simulated = [replace(t, rank=rank) for t, rank in zip(simulated, ranks, strict=True)]
    elif setting.method == "oracle":
        ranks = oracle_ranks(trace.right for trace in traces)
        simulated = [replace(t, rank=rank) for t, rank in zip(simulated, ranks, strict=True)]
    elif victim == "least-confident":
        simulated = [
            replace(t, confidences=token_confidences(trace))
            for t, trace in zip(simulated, traces, strict=True)
        ]
    return simulate(setting.shape, simulated, replace(setting.pruning, victim=victim))


def token_confidences(trace: PoolTrace) -> list[float]:
    """Return the confidence of each token [T] as a replay has it: the mean of its step."""
    recorded = RecordedSteps(**(signals(trace) or {"positions": [], "scores": []}))
    return [recorded.confidence(position) for position in range(trace.tokens)]


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
