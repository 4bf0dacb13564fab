"""What stopping traces saved, and which right ones it lost, as far as the baseline shows.

A stopped trace has no answer of its own. Where the baseline ran the same seed, and made the very
same tokens up to there, that run shows one way in which the trace would have gone on: its whole
trace. Reports call it the *twin* of the stopped one.
"""

import bisect
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from step_eval.records import QuestionRecord, TraceRecord

TENTHS = tuple(round(0.1 * tenth, 1) for tenth in range(1, 11))
"""Trace progress: part of a trace's full length in tokens."""
_BINS = 10


@dataclass(frozen=True)
class Stop:
    """A trace that a method stopped."""

    question: tuple[int, str]
    """Repeat and question."""
    tokens: int
    """Its length in tokens."""
    own_tokens: int
    """Of these, those that it had made itself; a branch inherits the others."""
    score: float | None
    """Trace score when it was stopped; its lowest group confidence where it has no score."""
    whole_tokens: int | None
    """Length of its whole trace; None without one."""
    whole_right: bool
    """Whether the whole trace came to the right answer."""
    expected_left: float | None
    """Without a whole trace: mean of the tokens that other traces of the question still made from
    that length on; None where none was as long."""

    @property
    def saved(self) -> int | None:
        """Tokens that its whole trace still made."""
        return None if self.whole_tokens is None else max(self.whole_tokens - self.tokens, 0)

    @property
    def progress(self) -> float | None:
        """How far it had come, in (0, 1] of its whole trace's length."""
        return None if self.whole_tokens is None else min(self.tokens / self.whole_tokens, 1.0)


@dataclass
class StopTotals:
    """Sums over stopped traces, as far as the baseline shows."""

    pruned: int = 0
    known: int = 0
    """Those with a whole trace."""
    would_be_right: int = 0
    """Those whose whole trace is right."""
    tokens_saved: int = 0
    """Tokens that the whole traces still made."""
    estimated: int = 0
    """Those without a whole trace, of a question of which other traces were longer."""
    tokens_estimated: int = 0
    """Tokens that those would still have made, had they gone on like the others."""


WholeTraces = Mapping[tuple[tuple[int, str], int], TraceRecord]
"""Traces that ran to their end, by (repeat, question) and trace number."""


def whole_traces(baseline: Sequence[QuestionRecord]) -> WholeTraces:
    """Return a baseline's traces that ran to their end."""
    return {
        (record.key, trace.trace_id): trace
        for record in baseline
        for trace in record.traces
        if trace.finished
    }


def whole_trace_of(
    trace: TraceRecord, whole: WholeTraces, key: tuple[int, str]
) -> TraceRecord | None:
    """Return the whole trace that has a stopped trace's tokens up to that one's last step.

    Args:
        trace: the stopped trace.
        whole: where to look.
        key: repeat and question of the stopped trace.
    """
    found = whole.get((key, trace.trace_id))
    if found is None or not trace.positions or found.seed != trace.seed:
        return None
    index = bisect.bisect_left(found.positions, trace.positions[-1])
    same = (
        index < len(found.positions)
        and found.positions[index] == trace.positions[-1]
        and found.prefix_hashes[index] == trace.prefix_hashes[-1]
    )
    return found if same else None


def stops(records: Sequence[QuestionRecord], baseline: Sequence[QuestionRecord]) -> list[Stop]:
    """Return the traces that a method stopped.

    Args:
        records: the method's records.
        baseline: records of a method that never stops a trace; may be empty.
    """
    whole = whole_traces(baseline)
    ended = {
        record.key: [trace for trace in record.traces if trace.finished]
        for group in (records, baseline)  # the baseline's, where it has the question
        for record in group
    }
    found = []
    for record in records:
        for trace in record.traces:
            if not trace.pruned:
                continue
            end = whole_trace_of(trace, whole, record.key)
            at = trace.tokens
            # A branch that began later says nothing of that length: its parent came past it.
            left = [t.tokens - at for t in ended[record.key] if t.inherited <= at < t.tokens]
            found.append(
                Stop(
                    record.key,
                    trace.tokens,
                    trace.own_tokens,
                    trace.lowest_confidence if trace.score is None else trace.score,
                    None if end is None else end.tokens,
                    end is not None and end.correct is True,
                    float(np.mean(left)) if left and end is None else None,
                )
            )
    return found


def stop_totals(found: Sequence[Stop]) -> StopTotals:
    """Return the sums over stopped traces."""
    known = [stop for stop in found if stop.whole_tokens is not None]
    estimates = [stop.expected_left for stop in found if stop.expected_left is not None]
    return StopTotals(
        len(found),
        len(known),
        sum(stop.whole_right for stop in known),
        sum(stop.saved or 0 for stop in known),
        len(estimates),
        round(sum(estimates)),
    )


def describe_stops(
    found: Sequence[Stop], records: Sequence[QuestionRecord], baseline: Sequence[QuestionRecord]
) -> dict[str, Any]:
    """Return what the pictures and tables of stopped traces show, ready for JSON.

    Args:
        found: the stopped traces.
        records: the records of the method that stopped them.
        baseline: the baseline's records.
    """
    known = [stop for stop in found if stop.whole_tokens is not None]
    saved = [stop.saved or 0 for stop in known]
    keys = {record.key for record in records}
    whole = [trace for record in baseline if record.key in keys for trace in record.traces]
    return {
        **dataclasses.asdict(stop_totals(found)),
        "baseline_right": _mean([float(trace.correct is True) for trace in whole]),
        "baseline_tokens": sum(trace.own_tokens for trace in whole),
        "mean_tokens": float(np.mean([stop.own_tokens for stop in found])) if found else None,
        "saved_mean": float(np.mean(saved)) if saved else None,
        "saved_tenths": [float(q) for q in np.quantile(saved, (0.1, 0.5, 0.9))] if saved else None,
        "saved_bins": _split(known, saved, _edges(saved, from_zero=True)),
        "by_progress": _split(known, [stop.progress or 0.0 for stop in known], (0.0, *TENTHS)),
        "by_score": _by_score(known),
        "questions": _by_question(found, records),
    }


def _edges(values: Sequence[float], from_zero: bool = False) -> tuple[float, ...]:
    """Return the edges of equal bins over values; none without values."""
    if not values:
        return ()
    low, high = (0.0 if from_zero else min(values)), max(values)
    return tuple(
        float(edge) for edge in np.linspace(low, high if high > low else low + 1, _BINS + 1)
    )


def _split(
    known: Sequence[Stop], values: Sequence[float], edges: Sequence[float]
) -> list[dict[str, float]]:
    """Return how many stopped traces lie in each bin, by whether their whole trace is right.

    A bin holds its upper edge.
    """
    rows: list[dict[str, float]] = [
        {"low": low, "high": high, "right": 0, "wrong": 0}
        for low, high in zip(edges, edges[1:], strict=False)
    ]
    for stop, value in zip(known, values, strict=True):
        index = bisect.bisect_left(edges, value - 1e-9) - 1
        row = rows[min(max(index, 0), len(rows) - 1)]
        row["right" if stop.whole_right else "wrong"] += 1
    return rows


def _by_score(known: Sequence[Stop]) -> list[dict[str, float]]:
    scored = [stop for stop in known if stop.score is not None]
    scores = [stop.score for stop in scored if stop.score is not None]
    return _split(scored, scores, _edges(scores))


def _by_question(found: Sequence[Stop], records: Sequence[QuestionRecord]) -> list[dict[str, Any]]:
    """Return a row for each question and repeat with stopped traces, most right ones lost first."""
    by_question: dict[tuple[int, str], list[Stop]] = {}
    for stop in found:
        by_question.setdefault(stop.question, []).append(stop)
    rows = []
    for record in records:
        here = by_question.get(record.key)
        if here is None:
            continue
        known = [stop for stop in here if stop.whole_tokens is not None]
        right = [stop for stop in known if stop.whole_right]
        rows.append(
            {
                "question_id": record.question_id,
                "repeat": record.repeat,
                "pruned": len(here),
                "known": len(known),
                "right": len(right),
                "progress": _mean([stop.progress for stop in right]),
                "score": _mean([stop.score for stop in right]),
                "saved": sum(stop.saved or 0 for stop in known),
                "right_left": sum(trace.correct is True for trace in record.traces),
            }
        )
    return sorted(rows, key=lambda row: -row["right"])


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return float(np.mean(numbers)) if numbers else None
