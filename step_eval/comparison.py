"""What the records say: a summary of each method, and paired differences to the baseline.

Intervals are those of `step_eval.statistics`: the unit is the question, with all of its repeats,
and both methods share the draws. A difference is called shown only if its 95 % interval leaves out
zero. Axes: P records, D bootstrap draws.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from step_eval.methods.registry import find_method
from step_eval.records import QuestionRecord
from step_eval.statistics import DRAWS, Floats, Interval, bootstrap_weights, interval
from step_eval.votes import voter_weights
from step_infer.client.answers import vote


@dataclass(frozen=True)
class Outcome:
    """What one method made of one question, once."""

    question_id: str
    repeat: int
    answer: str | None
    """The voted answer."""
    right: bool
    tokens: int
    """Generated tokens of all traces, those of pruned traces too, and inherited ones once."""
    seconds: float
    preemptions: int
    pruned: int
    decided: int
    """Traces that ended, or did not begin, because the vote did not need them any more."""
    peak_kv_use: float
    waiting_share: float
    """Part of all trace time spent waiting for memory."""
    trace_accuracy: float
    """Part of the traces that nothing stopped whose answer is right; no answer counts as wrong."""


METRICS: dict[str, tuple[Callable[[Outcome], float], int]] = {
    "accuracy": (lambda outcome: float(outcome.right), 1),
    "tokens": (lambda outcome: outcome.tokens, -1),
    "seconds": (lambda outcome: outcome.seconds, -1),
    "preemptions": (lambda outcome: outcome.preemptions, -1),
    "pruned": (lambda outcome: outcome.pruned, 0),
    "decided": (lambda outcome: outcome.decided, 0),
    "peak_kv_use": (lambda outcome: outcome.peak_kv_use, 0),
    "waiting_share": (lambda outcome: outcome.waiting_share, -1),
    "trace_accuracy": (lambda outcome: outcome.trace_accuracy, 0),
}
"""Figures by name: how to read one question's, and whether more is better (1), worse or neither."""


def vote_name(method: str, vote_setting: str) -> str:
    """Return the vote rule of a method: the setting, or the method's own where that is "auto"."""
    return find_method(method).vote if vote_setting == "auto" else vote_setting


def outcome(record: QuestionRecord, vote_by: str) -> Outcome:
    """Hold the vote by a rule of `votes.RULES`, and sum up one record; stopped traces have none."""
    index = voted_group(record, vote_by)
    answer = None if index is None else record.answers[index]
    finished = [trace for trace in record.traces if trace.finished]
    busy = record.running_trace_s + record.waiting_trace_s
    return Outcome(
        record.question_id,
        record.repeat,
        None if answer is None else answer.answer,
        answer is not None and bool(answer.correct),
        sum(trace.own_tokens for trace in record.traces),
        record.seconds,
        record.preemptions,
        sum(trace.pruned for trace in record.traces),
        sum(trace.closed for trace in record.traces),
        record.peak_kv_use,
        record.waiting_trace_s / busy if busy > 0 else 0.0,
        sum(trace.correct is True for trace in finished) / len(finished) if finished else 0.0,
    )


def voted_group(record: QuestionRecord, vote_by: str) -> int | None:
    """Return the index of the group of equal answers that wins, or None where nobody votes."""
    voters = [trace for trace in record.traces if trace.finished and trace.group is not None]
    weights = voter_weights(vote_by, voters, record.traces)
    winner = vote([str(trace.group) for trace in voters], weights).answer
    return None if winner is None else int(winner)


@dataclass(frozen=True)
class Summary:
    """One method over all its questions."""

    method: str
    questions: int
    repeats: int
    """The most repeats that any question has."""
    metrics: dict[str, Interval]
    """Means over questions of the figures of `METRICS`."""
    traces: int
    tokens_per_trace: float
    """Mean over all traces; a pruned one counts with the tokens it made."""
    no_answer: int
    """Traces that ran to their end without a final answer."""
    ungradable: int
    """Traces with an answer that could not be compared with the truth; they count as wrong."""


def mean_of_records(
    records: Sequence[QuestionRecord],
    read: Callable[[QuestionRecord], float],
    draws: int = DRAWS,
) -> Interval:
    """Return the mean over questions of what `read` takes from a record, with its interval."""
    ids = [record.question_id for record in records]
    plain_P, drawn_DP = bootstrap_weights(ids, draws)
    values_P = np.array([read(record) for record in records], dtype=float)
    return interval(float(plain_P @ values_P), drawn_DP @ values_P, len(set(ids)))


def summarise(records: Sequence[QuestionRecord], vote_by: str, draws: int = DRAWS) -> Summary:
    """Sum up the records of one method; there must be at least one."""
    outcomes = [outcome(record, vote_by) for record in records]
    ids = [o.question_id for o in outcomes]
    plain_P, drawn_DP = bootstrap_weights(ids, draws)
    metrics = {}
    for name, (read, _) in METRICS.items():
        values_P = np.array([read(o) for o in outcomes], dtype=float)
        metrics[name] = interval(plain_P @ values_P, drawn_DP @ values_P, len(set(ids)))
    traces = [trace for record in records for trace in record.traces]
    whole = [trace for trace in traces if trace.finished]
    return Summary(
        records[0].method,
        len(set(ids)),
        max(ids.count(name) for name in set(ids)),
        metrics,
        len(traces),
        sum(trace.own_tokens for trace in traces) / len(traces),
        sum(trace.answer is None for trace in whole),
        sum(trace.answer is not None and trace.correct is None for trace in whole),
    )


@dataclass(frozen=True)
class Difference:
    """One figure of a method against the baseline's, on the same questions."""

    metric: str
    baseline: float
    value: float
    difference: Interval
    relative: Interval | None
    """The ratio of the means minus 1; None where the baseline's mean is 0."""
    verdict: str
    """"better", "worse", "more", "less", or "no difference shown"."""


@dataclass(frozen=True)
class Comparison:
    """A method against the baseline."""

    method: str
    baseline: str
    questions: int
    pairs: int
    """Questions times repeats that both have."""
    differences: dict[str, Difference]
    lost: list[tuple[str, int]]
    """Question and repeat: right under the baseline, wrong under the method."""
    gained: list[tuple[str, int]]
    """The other way round."""


def compare(
    baseline: Sequence[QuestionRecord],
    method: Sequence[QuestionRecord],
    votes: Mapping[str, str],
    draws: int = DRAWS,
) -> Comparison | None:
    """Compare a method with the baseline on what both have done; None where that is nothing.

    Args:
        baseline: its records.
        method: the other method's records.
        votes: vote rule of each method, by its name.
        draws: bootstrap draws.
    """
    first = {record.key: outcome(record, votes[record.method]) for record in baseline}
    second = {record.key: outcome(record, votes[record.method]) for record in method}
    keys = [key for key in first if key in second]
    if not keys:
        return None
    ids = [question_id for _, question_id in keys]
    weights = bootstrap_weights(ids, draws)
    differences = {}
    for name, (read, sign) in METRICS.items():
        before_P = np.array([read(first[key]) for key in keys], dtype=float)
        after_P = np.array([read(second[key]) for key in keys], dtype=float)
        differences[name] = difference(name, before_P, after_P, sign, weights, len(set(ids)))
    return Comparison(
        method[0].method,
        baseline[0].method,
        len(set(ids)),
        len(keys),
        differences,
        [(q, r) for r, q in keys if first[r, q].right and not second[r, q].right],
        [(q, r) for r, q in keys if second[r, q].right and not first[r, q].right],
    )


def difference(
    name: str,
    before_P: Floats,
    after_P: Floats,
    sign: int,
    weights: tuple[Floats, Floats],
    num_questions: int,
) -> Difference:
    """Return the paired difference of a figure.

    Args:
        name: of the figure.
        before_P: it under the baseline, for each record [P].
        after_P: it under the method [P].
        sign: whether more is better (1), worse (-1) or neither (0).
        weights: what `bootstrap_weights` returns for the records' questions.
        num_questions: questions among the records.
    """
    plain_P, drawn_DP = weights
    before, after = float(plain_P @ before_P), float(plain_P @ after_P)
    change = interval(after - before, drawn_DP @ (after_P - before_P), num_questions)
    relative = None
    before_D = drawn_DP @ before_P
    if before > 0 and before_D.min() > 0:
        ratio_D = (drawn_DP @ after_P) / before_D
        relative = interval(after / before - 1, ratio_D - 1, num_questions)
    if not change.excludes_zero:
        verdict = "no difference shown"
    elif sign == 0:
        verdict = "more" if change.value > 0 else "less"
    else:
        verdict = "better" if change.value * sign > 0 else "worse"
    return Difference(name, before, after, change, relative, verdict)
