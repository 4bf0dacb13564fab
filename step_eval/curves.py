"""How well scores tell right traces from wrong ones, by how far a trace has come.

Outcome and length of a pruned trace are those of its whole trace (`step_eval.stops`), where it has
one. Without this, only traces that pruning spared would be looked at, and the scorer would seem
worse than it is.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from step_eval.records import QuestionRecord, TraceRecord
from step_eval.statistics import auroc, within_question_aurocs
from step_eval.stops import TENTHS, whole_trace_of, whole_traces
from step_infer.scorer.aggregate import AGGREGATORS


@dataclass(frozen=True)
class ScoredTrace:
    """A trace whose outcome is known: S step scores.

    Those that a branch inherited are its parent's, and counted there; here they are but the
    beginning of its trace score.
    """

    question: tuple[int, str]
    """Repeat and question."""
    progress: list[float]
    """How far the trace was at each step, in (0, 1] of its full length [S]."""
    scores: list[float]
    """Step scores [S]."""
    right: bool
    stopped: bool
    inherited: int = 0
    """Of its steps, those that a branch has from its parent."""


def scored_traces(
    records: Sequence[QuestionRecord], baseline: Sequence[QuestionRecord]
) -> list[ScoredTrace]:
    """Return the scored traces of a method whose outcome is known.

    Args:
        records: the method's records.
        baseline: records of a method that never prunes; may be empty.
    """
    whole = whole_traces(baseline)
    found = []
    for record in records:
        for trace in record.traces:
            end: TraceRecord | None = trace
            if not trace.finished:
                end = whole_trace_of(trace, whole, record.key)
            if end is None:
                continue
            steps = [
                (min(position + 1, end.tokens) / end.tokens, score)
                for position, score in zip(trace.positions, trace.scores, strict=False)
                if score is not None
            ]
            if steps and (end.correct is not None or end.answer is None):
                progress, scores = map(list, zip(*steps, strict=True))
                inherited = sum(
                    position < trace.inherited and score is not None
                    for position, score in zip(trace.positions, trace.scores, strict=False)
                )
                right, stopped = end.correct is True, not trace.finished
                found.append(ScoredTrace(record.key, progress, scores, right, stopped, inherited))
    return found


@dataclass(frozen=True)
class AurocPoint:
    """Ranking by the trace score at one point of progress."""

    progress: float
    overall: float | None
    """Over all traces of all questions."""
    within: float | None
    """Mean over the questions that have right and wrong traces, each weighing the same."""
    questions: int
    """Questions (times repeats) in `within`."""
    traces: int


def auroc_by_progress(traces: Sequence[ScoredTrace], aggregator: str) -> list[AurocPoint]:
    """Return AUROC at each tenth of progress, by the aggregate of the steps up to there."""
    aggregate = AGGREGATORS[aggregator]
    numbers = {question: i for i, question in enumerate({trace.question for trace in traces})}
    points = []
    for tenth in TENTHS:
        rows = []
        for trace in traces:
            steps = bisect.bisect_right(trace.progress, tenth + 1e-9)
            reached = not trace.stopped or trace.progress[-1] > tenth - 0.1
            if steps > trace.inherited and reached:
                score = aggregate(trace.scores[:steps])
                rows.append((trace.right, score, numbers[trace.question]))
        right_N = np.array([row[0] for row in rows], dtype=bool)
        score_N = np.array([row[1] for row in rows], dtype=float)
        question_N = np.array([row[2] for row in rows], dtype=np.int64)
        within_Q = within_question_aurocs(right_N, score_N, question_N)
        both = right_N.any() and not right_N.all()
        points.append(
            AurocPoint(
                tenth,
                auroc(right_N, score_N) if both else None,
                float(within_Q.mean()) if len(within_Q) else None,
                len(within_Q),
                len(rows),
            )
        )
    return points


@dataclass(frozen=True)
class ScoreCurve:
    """Step scores of right or of wrong traces, by tenth of progress; None where there are none."""

    right: bool
    traces: int
    mean: list[float | None]
    low: list[float | None]
    """10th percentile over traces."""
    high: list[float | None]
    """90th percentile over traces."""


def score_curve(traces: Sequence[ScoredTrace], right: bool) -> ScoreCurve:
    """Return the curve of the right or the wrong traces: each counts with its mean in a tenth."""
    chosen = [trace for trace in traces if trace.right == right]
    columns: list[list[float]] = [[] for _ in TENTHS]
    for trace in chosen:
        by_tenth: dict[int, list[float]] = {}
        own = slice(trace.inherited, None)
        for progress, score in zip(trace.progress[own], trace.scores[own], strict=True):
            by_tenth.setdefault(min(int(progress * 10), 9), []).append(score)
        for tenth, scores in by_tenth.items():
            columns[tenth].append(sum(scores) / len(scores))
    return ScoreCurve(
        right,
        len(chosen),
        [float(np.mean(column)) if column else None for column in columns],
        [float(np.quantile(column, 0.1)) if column else None for column in columns],
        [float(np.quantile(column, 0.9)) if column else None for column in columns],
    )
