"""What ending questions early changed: against the same method without it, and on its own records.

Two views. A method with `+decided` or `+likely` beside the same method without: what really ran,
with all that differs from run to run. And each record of a method without, up to the moment when a
rule would have ended it: exactly the same traces, so that every changed answer is the rule's.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from step_eval.comparison import Difference, compare, difference, outcome, voted_group
from step_eval.methods.registry import base_name, find_method
from step_eval.records import QuestionRecord, TraceRecord
from step_eval.statistics import DRAWS, bootstrap_weights
from step_eval.votes import most_weight, score_weigher, vote_rule, vote_signal
from step_infer.client.deciding import (
    LIKELY,
    NEVER,
    UNBEATABLE,
    Ballot,
    Open,
    StopRule,
    decide,
    likely_rule,
)
from step_infer.client.grading import Grader
from step_infer.scorer.aggregate import AGGREGATORS, NEVER_RISE

Records = Mapping[str, Sequence[QuestionRecord]]
Key = tuple[int, str]
"""Repeat and question."""


@dataclass(frozen=True)
class Closing:
    """Where a rule would have ended a question."""

    seconds: float
    """From its submission; those of its last trace where nothing was decided before."""
    group: int | None
    """The answer that led then, as an index of `QuestionRecord.answers`."""


def closing(
    record: QuestionRecord, rule: StopRule, vote_by: str, aggregator: str = "mean"
) -> Closing:
    """Return where a rule would have ended a question whose traces all ran to their ends.

    Args:
        record: the question; pruned traces are out of the vote from the moment they were stopped.
        rule: the stop rule.
        vote_by: the vote rule.
        aggregator: from step scores to the trace score that a running trace has so far.
    """
    weigh, signal = vote_rule(vote_by), vote_signal(vote_by)
    most, expect = most_weight(vote_by), score_weigher(vote_by)
    falls = aggregator in NEVER_RISE
    if rule.name != LIKELY and not falls:
        expect = None  # nobody asks for the scores of running traces
    ended: list[TraceRecord] = []
    for trace in sorted(record.traces, key=lambda trace: trace.finished_s):
        ended.append(trace)
        voters = [t for t in ended if t.finished and t.group is not None]
        weights = [weigh([None if signal is None else getattr(t, signal)])[0] for t in voters]
        numbers = {t.trace_id for t in ended}
        others = [
            Open.running(
                t.trace_id, most, _expected(t, trace.finished_s, expect, aggregator), falls
            )
            for t in record.traces
            if t.trace_id not in numbers
        ]
        found = decide(
            [
                Ballot(t.trace_id, str(t.group), weight)
                for t, weight in zip(voters, weights, strict=True)
            ],
            others,
            rule,
        )
        if others and found is not None:
            return Closing(trace.finished_s, int(found.answer))
    return Closing(record.seconds, voted_group(record, vote_by))


def _expected(
    trace: TraceRecord,
    now_s: float,
    expect: Callable[[float], float] | None,
    aggregator: str,
) -> float | None:
    """Return the weight of a running trace's score so far, taking its tokens to come evenly."""
    if expect is None or now_s <= trace.submitted_s:
        return None
    part = (now_s - trace.submitted_s) / (trace.finished_s - trace.submitted_s)
    so_far = [
        score
        for position, score in zip(trace.positions, trace.scores, strict=False)
        if score is not None and position < part * trace.tokens
    ]
    return expect(AGGREGATORS[aggregator](so_far)) if so_far else None


def against_undecided(
    records: Records, votes: Mapping[str, str], grader: Grader, draws: int = DRAWS
) -> dict[str, Any]:
    """Compare each method that ends questions early with the same one that does not; for JSON.

    Args:
        records: of all methods.
        votes: vote rule of each method.
        grader: compares answers.
        draws: bootstrap draws.
    """
    found = {}
    for name, group in records.items():
        base = base_name(name)
        if find_method(name).stop_rule == NEVER or base not in records:
            continue
        comparison = compare(records[base], group, votes, draws)
        if comparison is None:
            continue
        before = {record.key: outcome(record, votes[base]).answer for record in records[base]}
        after = {record.key: outcome(record, votes[name]).answer for record in group}
        changed = [
            key
            for key, answer in after.items()
            if key in before and not _same(before[key], answer, grader)
        ]
        found[name] = {**dataclasses.asdict(comparison), "changed": changed}
    return found


def _same(first: str | None, second: str | None, grader: Grader) -> bool:
    if first is None or second is None:
        return first is second
    return grader.equal(first, second) is True


@dataclass(frozen=True)
class OnRecords:
    """A stop rule on the records of a method that knows none."""

    method: str
    rule: str
    threshold: float | None
    questions: int
    changed: list[Key]
    """Repeat and question of the answers that would have been others."""
    accuracy: Difference
    seconds: Difference


def on_records(
    records: Records,
    votes: Mapping[str, str],
    thresholds: Mapping[str, Any],
    aggregator: str,
    draws: int = DRAWS,
) -> list[OnRecords]:
    """Return what each stop rule would have changed on the records of methods without one.

    Args:
        records: of all methods.
        votes: vote rule of each method.
        thresholds: those of the rule `likely`, as in the scorer card.
        aggregator: trace aggregator.
        draws: bootstrap draws.
    """
    found = []
    for name, group in records.items():
        if find_method(name).stop_rule != NEVER or any(len(r.traces) < 2 for r in group):
            continue
        rules = [StopRule(UNBEATABLE)]
        if votes[name] in thresholds:
            rules.append(likely_rule(thresholds, votes[name]))
        if most_weight(votes[name]) == np.inf:
            continue
        if any(trace.parent is not None for record in group for trace in record.traces):
            continue  # a child that began later would not have begun
        found += [_on_records(group, rule, votes[name], aggregator, draws) for rule in rules]
    return found


def _on_records(
    records: Sequence[QuestionRecord], rule: StopRule, vote_by: str, aggregator: str, draws: int
) -> OnRecords:
    whole = [voted_group(record, vote_by) for record in records]
    ends = [closing(record, rule, vote_by, aggregator) for record in records]
    ids = [record.question_id for record in records]
    weights = bootstrap_weights(ids, draws)

    def right(record: QuestionRecord, group: int | None) -> float:
        return float(group is not None and record.answers[group].correct is True)

    def change(name: str, before: list[float], after: list[float], sign: int) -> Difference:
        return difference(name, np.array(before), np.array(after), sign, weights, len(set(ids)))

    return OnRecords(
        records[0].method,
        rule.name,
        rule.threshold if rule.name == LIKELY else None,
        len(set(ids)),
        [r.key for r, group, end in zip(records, whole, ends, strict=True) if group != end.group],
        change(
            "accuracy",
            [right(record, group) for record, group in zip(records, whole, strict=True)],
            [right(record, end.group) for record, end in zip(records, ends, strict=True)],
            1,
        ),
        change(
            "seconds", [record.seconds for record in records], [end.seconds for end in ends], -1
        ),
    )
