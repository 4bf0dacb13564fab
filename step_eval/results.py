"""From a run's directory to its results: one JSON-ready dictionary, results.json, the report."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from step_eval.budget import RESULTS_NAME
from step_eval.comparison import (
    Comparison,
    compare,
    mean_of_records,
    outcome,
    summarise,
    vote_name,
)
from step_eval.curves import auroc_by_progress, score_curve, scored_traces
from step_eval.decided import against_undecided, on_records
from step_eval.methods.registry import BASELINE, find_method, method_order
from step_eval.records import RECORDS_FOLDER, QuestionRecord, RecordStore
from step_eval.statistics import COVERAGE, DRAWS, INTERVAL_KIND
from step_eval.stops import describe_stops, stop_totals, stops
from step_eval.votes import SHOWN_VOTES, UNIFORM, has_signal
from step_infer.client.grading import Grader
from step_infer.client.kinds import AnswerOptions
from step_infer.errors import InputError
from step_infer.storage.files import write_json
from step_infer.storage.run_directory import MANIFEST_NAME, read_manifest

RESULTS_SCHEMA_VERSION = 1
REPORT_NAME = "report.html"
KIND = "step-eval"
"""What the manifest calls a directory of step-eval."""
OWN_FILES = (MANIFEST_NAME, RECORDS_FOLDER, RESULTS_NAME, REPORT_NAME)
"""What it holds; other files are its user's."""

Records = Mapping[str, Sequence[QuestionRecord]]
_TRACE_SECONDS: dict[str, Callable[[QuestionRecord], float]] = {
    "running_s": lambda record: record.running_trace_s / len(record.traces),
    "waiting_s": lambda record: record.waiting_trace_s / len(record.traces),
}
"""Seconds that a trace runs and waits in the engine, mean over a question's traces."""


def read_run(out: Path | str) -> tuple[dict[str, Any], dict[str, list[QuestionRecord]]]:
    """Return a run's manifest and the records of each of its methods, in the registry's order.

    Only questions that the manifest lists count, and their records come in its order.

    Raises:
        InputError: the directory is not one of step-eval, or holds no record yet.
    """
    manifest = read_manifest(out)
    if manifest.get("kind") != KIND:
        raise InputError(
            f"Expected a directory of step-eval, found {out}. Hint: name the --out of a run."
        )
    place = {question_id: index for index, question_id in enumerate(manifest["question_ids"])}
    found = RecordStore(out).read()
    # Replicas append as they finish; a report must not depend on that.
    records = {
        name: sorted(
            (record for record in found[name] if record.question_id in place),
            key=lambda record: (record.repeat, place[record.question_id]),
        )
        for name in method_order(found)
    }
    records = {name: group for name, group in records.items() if group}
    if not records:
        raise InputError(f"Expected records in {out}, found none. Hint: run step-eval first.")
    return manifest, records


def build_results(
    manifest: Mapping[str, Any], records: Records, vote: str = "auto", draws: int = DRAWS
) -> dict[str, Any]:
    """Compute everything that the tables and the report show.

    Args:
        manifest: the run's manifest.
        records: at least one record of each method.
        vote: vote rule, or "auto" for each method's own.
        draws: bootstrap draws.
    """
    wanted = {name: vote_name(name, vote) for name in records}
    votes = {name: rule if _able(rule, records[name]) else UNIFORM for name, rule in wanted.items()}
    baseline = BASELINE if BASELINE in records else next(iter(records))
    card = manifest.get("card")
    aggregator = manifest["settings"].get("aggregator") or (card or {}).get("aggregator") or "mean"
    methods: dict[str, Any] = {}
    comparisons = {}
    curves = {}
    stopping = {}
    for name, group in records.items():
        methods[name] = {
            "label": find_method(name).label,
            "about": find_method(name).about,
            "vote": votes[name],
            "vote_wanted": wanted[name],
            **dataclasses.asdict(summarise(group, votes[name], draws)),
            "accuracy_by_vote": _accuracy_by_vote(group),
            "branches": _branches(group),
        }
        plain = records[baseline] if name != baseline else []
        traces = scored_traces(group, plain)
        stopped = stops(group, plain)
        methods[name]["stop_totals"] = dataclasses.asdict(stop_totals(stopped))
        if stopped:
            stopping[name] = describe_stops(stopped, group, plain)
        if traces:
            curves[name] = {
                "aggregator": aggregator,
                "auroc": [dataclasses.asdict(p) for p in auroc_by_progress(traces, aggregator)],
                "right": dataclasses.asdict(score_curve(traces, True)),
                "wrong": dataclasses.asdict(score_curve(traces, False)),
            }
        if name != baseline:
            comparison = compare(records[baseline], group, votes, draws)
            if comparison is not None:
                comparisons[name] = _described(comparison, records, votes)
    with Grader(answers=AnswerOptions.from_settings(manifest["settings"])) as grader:
        undecided = against_undecided(records, votes, grader, draws)
    thresholds = (card or {}).get("deciding", {})
    return {
        "schema_version": RESULTS_SCHEMA_VERSION,
        "created": manifest["created"],
        "command": manifest["command"],
        "versions": manifest["versions"],
        "git_commit": manifest.get("git_commit"),
        "device": manifest.get("device"),
        "replicas": manifest.get("replicas"),
        "model": manifest["model"],
        "scorer": manifest.get("scorer"),
        "card": card,
        "settings": manifest["settings"],
        "budget": manifest["budget"],
        "questions": {
            **manifest["questions"],
            "asked": len(manifest["question_ids"]),
            "repeats": manifest["repeats"],
        },
        "bootstrap": {"draws": draws, "coverage": COVERAGE, "interval": INTERVAL_KIND},
        "baseline": baseline,
        "methods": methods,
        "comparisons": comparisons,
        "curves": curves,
        "stops": stopping,
        "decided": undecided,
        "stop_rules": [
            dataclasses.asdict(found)
            for found in on_records(records, votes, thresholds, aggregator, draws)
        ],
        "shared": _shared(records, votes, draws),
        "latency": {
            name: [[record.question_id, record.repeat, record.seconds] for record in group]
            for name, group in records.items()
        },
    }


def _shared(records: Records, votes: Mapping[str, str], draws: int) -> dict[str, Any]:
    """Return the figures that pictures compare: on the questions that all methods have answered.

    Where there is no such question, each method stands on its own ones.
    """
    keys = set.intersection(*({record.key for record in group} for group in records.values()))
    compared: Records = records
    if keys:
        compared = {n: [r for r in group if r.key in keys] for n, group in records.items()}
    every = {record.key for group in records.values() for record in group}
    return {
        "questions": len({question_id for _, question_id in keys}),
        "pairs": len(keys),
        "complete": keys == every,
        "methods": {
            name: {
                **{
                    metric: dataclasses.asdict(found)
                    for metric, found in summarise(group, votes[name], draws).metrics.items()
                },
                **{
                    figure: dataclasses.asdict(mean_of_records(group, read, draws))
                    for figure, read in _TRACE_SECONDS.items()
                },
            }
            for name, group in compared.items()
        },
    }


def _able(rule: str, records: Sequence[QuestionRecord]) -> bool:
    return has_signal(rule, (trace for record in records for trace in record.traces))


def _accuracy_by_vote(records: Sequence[QuestionRecord]) -> dict[str, float]:
    """Return the accuracy of each vote rule that these traces have the numbers for."""
    shares = {}
    for rule in (rule for rule in SHOWN_VOTES if _able(rule, records)):
        by_question: dict[str, list[bool]] = {}
        for record in records:
            by_question.setdefault(record.question_id, []).append(outcome(record, rule).right)
        shares[rule] = sum(sum(b) / len(b) for b in by_question.values()) / len(by_question)
    return shares


def _branches(records: Sequence[QuestionRecord]) -> dict[str, int] | None:
    """Return how many traces branched from another, and how much of their beginnings was cached."""
    found = [
        (record.prompt_tokens + trace.inherited, trace)
        for record in records
        for trace in record.traces
        if trace.parent is not None
    ]
    if not found:
        return None
    begun = [(tokens, t.cached_tokens) for tokens, t in found if t.cached_tokens is not None]
    return {
        "traces": len(found),
        "inherited_tokens": sum(trace.inherited for _, trace in found),
        "prefix_tokens": sum(tokens for tokens, _ in begun),
        "cached_tokens": sum(cached for _, cached in begun),
    }


def _described(
    comparison: Comparison, records: Records, votes: Mapping[str, str]
) -> dict[str, Any]:
    """Return a comparison with the answers on questions whose verdict changed."""
    by_key = {
        name: {record.key: record for record in records[name]}
        for name in (comparison.baseline, comparison.method)
    }

    def changed(keys: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
        rows = []
        for question_id, repeat in keys:
            before, after = (
                by_key[name][repeat, question_id]
                for name in (comparison.baseline, comparison.method)
            )
            rows.append(
                {
                    "question_id": question_id,
                    "repeat": repeat,
                    "truth": before.truth,
                    "baseline_answer": outcome(before, votes[comparison.baseline]).answer,
                    "method_answer": outcome(after, votes[comparison.method]).answer,
                    "right_traces_baseline": sum(t.correct is True for t in before.traces),
                    "right_traces_method": sum(t.correct is True for t in after.traces),
                    "pruned": sum(t.pruned for t in after.traces),
                }
            )
        return rows

    return {
        **dataclasses.asdict(comparison),
        "lost": changed(comparison.lost),
        "gained": changed(comparison.gained),
    }


def write_results(out: Path | str, vote: str = "auto") -> dict[str, Any]:
    """Compute a run's results and write results.json and report.html beside its records.

    Raises:
        InputError: the directory holds no run, or no record yet.
    """
    from step_eval.report.html import write_report

    manifest, records = read_run(out)
    results = build_results(manifest, records, vote)
    write_json(Path(out) / RESULTS_NAME, results)
    write_report(Path(out) / REPORT_NAME, results, records)
    return results
