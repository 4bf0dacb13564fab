"""One question, simulated with one engine and one method: schedule, vote, figures."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from step_eval.methods.victims import ABLATIONS, oracle_ranks, random_ranks
from step_eval.recorded.traces import PoolTrace
from step_eval.replay.signals import RecordedSteps, signals
from step_eval.report.words import HEADINGS
from step_eval.simulation.deciding import Voting
from step_eval.simulation.engine import simulate
from step_eval.simulation.schedule import EngineShape, Pruning, Schedule
from step_eval.simulation.timing import Timing
from step_eval.simulation.traces import block_contents, simulated_traces
from step_eval.votes import UNIFORM
from step_infer.client.deciding import NEVER, StopRule

MEASURED = ("accuracy", "seconds", "tokens", "preemptions", "pruned", "waiting_share")
"""Figures of a question that an engine's records have, too; names as in `report.words.HEADINGS`."""
DECIDING = {"decided": HEADINGS["decided"], "changed": "Answers changed"}
"""Figures beside them of methods that stop when the vote is decided, and their headings: traces
that ended for it, and whether the answer is another one than the same traces' without it."""
FIGURES = (*MEASURED, *DECIDING)

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
    stop: StopRule = StopRule(NEVER)
    """When all traces end because the vote is decided."""

    @property
    def schedule(self) -> str:
        """The method whose schedule it has, but for the stop."""
        return "sc" if self.method in STOCK else self.method

    @property
    def scores(self) -> bool:
        """Whether its engine scores traces."""
        return self.method != "sc"

    @property
    def own_vote(self) -> str:
        """The method's vote rule."""
        return UNIFORM if self.method == "sc" else self.vote


def run_question(
    setting: Setting,
    traces: Sequence[PoolTrace],
    prompt_tokens: int,
    scores: Sequence[Sequence[float | None]] | None = None,
) -> Schedule:
    """Return the schedule of a question's traces under a method, where nothing is decided.

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
    """Return a question's figures by the names of `FIGURES`; only traces that finish vote.

    Args:
        schedule: what `run_question` returned for the setting.
        setting: engine and method.
        traces: the question's traces.
        timing: cost of a step.
        scores: step scores that stand for the traces' own.
    """
    voting = Voting(traces, setting.own_vote, setting.pruning.aggregator, scores)
    winner = undecided = voting.winner(finished(schedule))
    stop = next(voting.decisions(schedule, setting.stop), None)
    if stop is not None:
        schedule = schedule.decided_at(stop[0])
        winner = voting.winner(finished(schedule))
    timing = timing.of_engine(setting.scores)
    running, waiting = timing.seconds(schedule.running), timing.seconds(schedule.waiting)
    return {
        "accuracy": float(any(t.right and t.answer == winner for t in traces)),
        "seconds": max(timing.seconds(work) for work in schedule.ended_after.values()),
        "tokens": float(sum(schedule.tokens)),
        "preemptions": float(len(schedule.preempted)),
        "pruned": float(len(schedule.pruned)),
        "waiting_share": waiting / (running + waiting) if running + waiting > 0 else 0.0,
        "decided": float(len(schedule.decided)),
        "changed": float(winner != undecided),
    }


def finished(schedule: Schedule) -> list[int]:
    """Return the traces that ran to their ends."""
    stopped = {*schedule.pruned, *schedule.decided}
    return [trace for trace in schedule.order if trace not in stopped]
