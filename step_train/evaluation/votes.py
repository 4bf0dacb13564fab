"""How often a vote of N traces finds the right answer, by the weights of the votes.

Axes: M traces of a question, G groups of equal answers, C choices of N traces.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_gen.traces.directory import TraceDirectory
from step_eval.statistics import DRAWS, Bools, Floats, Ints
from step_eval.votes import vote_rule
from step_train.data.trace_table import TraceTable
from step_train.evaluation.held_out import trace_scores
from step_train.evaluation.metrics import mean_figure

VOTERS = (4, 8, 16, 32, 64)
"""How many traces vote."""

CHOICES = 64
"""Random choices of N traces of a question."""

_RULES = {
    "uniform": ("score", "uniform"),
    "score": ("score", "score"),
    "score^4": ("score", "score^4"),
    "confidence": ("confidence", "score"),
}
"""Vote rules by name: what weighs a trace, and how (`step_eval.votes.vote_rule`)."""

_RIGHT = -1
"""Stands for the group of all right answers; those that are kept are numbered from 0."""

DEFINITIONS = {
    "uniform": "each trace counts the same (self-consistency)",
    "score": "a trace counts as much as its trace score (STEP)",
    "score^4": "a trace counts as much as its trace score to the fourth power",
    "confidence": "a trace counts as much as its mean token confidence (DeepConf)",
    "traces": "all finished traces of a question; one without an answer does not vote, one "
    "without a score counts 0.5 in its place, and one without a confidence 1",
}


@dataclass(frozen=True)
class Ballot:
    """The traces of one question: what each votes for, and what may weigh it."""

    group_M: Ints
    """Each trace's group of equal answers; -1 without an answer."""
    right_G: Bools
    """Whether a group's answer is right."""
    score_M: Sequence[float | None]
    """Trace scores; None for a trace without a step."""
    confidence_M: Sequence[float | None]
    """Mean token confidences; None where not recorded."""


def evaluate_votes(
    directory: TraceDirectory, table: TraceTable, score_S: Floats, aggregator: str, seed: int
) -> dict[str, Any]:
    """Return the vote accuracies of a split's questions (`vote_accuracy`)."""
    (trace_score_N,) = trace_scores(table, score_S, aggregator, [1.0])
    return vote_accuracy(read_ballots(directory, table, trace_score_N), seed=seed)


def read_ballots(
    directory: TraceDirectory, table: TraceTable, trace_score_N: Floats
) -> list[Ballot]:
    """Read the votes of a split's questions, with the groups of equal answers that are kept.

    Args:
        directory: the traces.
        table: the split's usable traces.
        trace_score_N: their trace scores.
    """
    score_of: dict[tuple[int, int], float] = {}
    for shard, row, score in zip(
        table.shard_N.tolist(), table.row_start_N.tolist(), trace_score_N.tolist(), strict=True
    ):
        score_of[shard, row] = score
    questions = {table.questions[i] for i in np.unique(table.question_N).tolist()}
    columns = (
        *("question_id", "finish_reason", "extracted_answer", "is_correct", "answer_group"),
        *("shard", "row_start", "num_steps", "mean_token_confidence"),
    )
    votes: dict[str, list[dict[str, Any]]] = {}
    for part in range(directory.num_parts):
        for row in directory.part(part, columns).to_pylist():
            if row["question_id"] in questions and row["finish_reason"] != "pruned":
                votes.setdefault(row["question_id"], []).append(row)
    return [_ballot(rows, score_of) for rows in votes.values()]


def _ballot(rows: list[dict[str, Any]], score_of: dict[tuple[int, int], float]) -> Ballot:
    # Right answers all equal the truth, and no wrong one does, whatever their groups.
    groups = [_RIGHT if row["is_correct"] else row["answer_group"] for row in rows]
    number_of = {group: index for index, group in enumerate(sorted({*groups} - {None}))}
    return Ballot(
        np.array([-1 if group is None else number_of[group] for group in groups]),
        np.array([group == _RIGHT for group in number_of], dtype=bool),
        [
            score_of.get((row["shard"], row["row_start"])) if row["num_steps"] else None
            for row in rows
        ],
        [row["mean_token_confidence"] for row in rows],
    )


def vote_accuracy(
    ballots: Sequence[Ballot], choices: int = CHOICES, draws: int = DRAWS, seed: int = 0
) -> dict[str, Any]:
    """Return the accuracy of votes of 4 to 64 traces, with intervals over questions.

    Returns:
        "by_traces": for each number of traces that a question has, "questions" (those with enough
        traces), and for each rule the accuracy as `metrics.mean_figure` gives it with "gain", the
        same for its paired difference to the uniform vote. "not_computed": rules left out, and why.
    """
    names = list(_RULES)
    not_computed = {}
    if any(None in ballot.confidence_M for ballot in ballots):
        names.remove("confidence")
        not_computed["confidence"] = "token confidences were not recorded for all traces"
    by_traces: dict[str, Any] = {}
    for voters in VOTERS:
        enough = [ballot for ballot in ballots if len(ballot.group_M) >= voters]
        if not enough:
            continue
        right = {name: np.empty(len(enough)) for name in names}
        for index, ballot in enumerate(enough):
            generator = np.random.default_rng([seed, voters, index])
            for name, value in _right_share(ballot, names, voters, choices, generator).items():
                right[name][index] = value
        options: dict[str, Any] = {"draws": draws, "seed": seed}
        by_traces[str(voters)] = {"questions": len(enough)} | {
            name: mean_figure(values, **options)
            | {"gain": mean_figure(values - right["uniform"], **options)}
            for name, values in right.items()
        }
    return {
        "draws": choices,
        "by_traces": by_traces,
        "not_computed": not_computed,
        "definitions": DEFINITIONS,
    }


def _right_share(
    ballot: Ballot, names: Sequence[str], voters: int, choices: int, generator: np.random.Generator
) -> dict[str, float]:
    """Return for each rule how often the chosen traces vote for the right answer."""
    count, groups = len(ballot.group_M), len(ballot.right_G)
    if not groups:
        return dict.fromkeys(names, 0.0)
    chosen_CM = np.argsort(generator.random((choices, count)), axis=1)[:, :voters]
    group_CM = ballot.group_M[chosen_CM]
    choice_CM = np.broadcast_to(np.arange(choices)[:, None], chosen_CM.shape)
    voting = group_CM >= 0
    cell = (choice_CM * groups + group_CM)[voting]
    # Ties go to the group whose first voter comes first, as in `answers.vote`.
    first = np.full(choices * groups, voters)
    np.minimum.at(first, cell, np.broadcast_to(np.arange(voters), chosen_CM.shape)[voting])
    first_CG = first.reshape(choices, groups)
    shares = {}
    for name in names:
        weighed_by, rule = _RULES[name]
        known = ballot.score_M if weighed_by == "score" else ballot.confidence_M
        weight_M = np.array(vote_rule(rule)(known))
        weight_CG = np.bincount(cell, weight_M[chosen_CM][voting], minlength=choices * groups)
        weight_CG = weight_CG.reshape(choices, groups)
        best = weight_CG >= weight_CG.max(axis=1, keepdims=True) * (1 - 1e-9)
        winner_C = np.where(best, first_CG, voters + 1).argmin(axis=1)
        shares[name] = float((ballot.right_G[winner_C] & voting.any(axis=1)).mean())
    return shares
