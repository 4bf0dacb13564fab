"""The report of a training run: one HTML file that needs nothing beside it. Axes: S steps."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, logit

from data_gen.traces.directory import TraceDirectory
from step_eval.report.page import render_page
from step_eval.statistics import FEW_QUESTIONS, Floats
from step_infer.client.prompt import load_tokenizer
from step_infer.errors import InputError
from step_infer.scorer.card import ScorerCard
from step_infer.storage.files import atomic_write
from step_train.data.trace_table import TraceTable
from step_train.data.training_data import TrainingData
from step_train.evaluation.held_out import trace_scores
from step_train.evaluation.metrics import reliability
from step_train.evaluation.report_figures import (
    auroc_by_progress,
    auroc_by_step,
    calibration_curve,
    loss_curves,
    sample_curves,
    score_distribution,
)
from step_train.evaluation.slice_metrics import SLICE_METRICS
from step_train.evaluation.trace_facts import rows_of_traces
from step_train.evaluation.view import interval_text
from step_train.extract.model import local_model

_TEMPLATE = Path(__file__).with_name("report.html.j2")
_SAMPLES = 2
"""Sample traces of either kind."""
_MOST_STEPS, _MOST_CHARACTERS = 80, 500
"""Of a sample trace's text, and of one of its steps."""


def write_report(
    path: Path,
    data: TrainingData,
    score_S: Floats,
    outcome: Mapping[str, Any],
    card: ScorerCard,
    seed: int,
) -> None:
    """Write a run's report, atomically.

    Args:
        path: the HTML file.
        data: the run's data.
        score_S: calibrated step scores of the test questions.
        outcome: what `FitDirectory.finish_fit` takes.
        card: the card that the scorer gets at export.
        seed: of the choice of sample traces.
    """
    with atomic_write(path, "w") as file:
        file.write(render_report(data, score_S, outcome, card, seed))


def render_report(
    data: TrainingData,
    score_S: Floats,
    outcome: Mapping[str, Any],
    card: ScorerCard,
    seed: int,
) -> str:
    """Return the report's HTML; see `write_report`."""
    test = data.splits["test"]
    metrics, baselines = outcome["metrics"], outcome["baselines"]
    samples, no_text = sample_traces(
        TraceDirectory(data.path), test, score_S, card.base_model, seed
    )
    (half_N,) = trace_scores(test, score_S, outcome["aggregator"], [0.5])
    return render_page(
        _TEMPLATE,
        card=card,
        outcome=outcome,
        metrics=metrics,
        names=SLICE_METRICS,
        at=metrics["trace_score"][outcome["aggregator"]],
        baselines={n: entry for n, entry in baselines.items() if "steps" in entry},
        definitions=baselines.get("definitions", {}),
        votes=metrics["votes"],
        text=interval_text,
        loss=loss_curves(outcome["history"], outcome["best_epoch"]),
        progress=auroc_by_progress(metrics, baselines),
        steps=auroc_by_step(metrics, baselines),
        calibration=calibration_curve(
            metrics["reliability"],
            reliability(test.label_S, uncalibrated(score_S, outcome["calibration"])),
        ),
        spread_steps=score_distribution("steps", test.label_S, score_S, "step score"),
        spread_traces=score_distribution("traces", test.correct_N, half_N, "trace score half-way"),
        samples=samples,
        sample_figure=sample_curves(samples) if samples else "",
        missing=_missing(data, outcome, no_text),
        split={name: table.summary() for name, table in data.splits.items()},
        skipped=", ".join(f"{n} {reason}" for reason, n in data.skipped.items() if n),
        rows=_card_rows(card),
        few=FEW_QUESTIONS,
    )


def uncalibrated(score_S: Floats, calibration: Mapping[str, Any]) -> Floats:
    """Return step scores as they were before the temperature."""
    bounded = np.clip(score_S.astype(np.float64), 1e-12, 1 - 1e-12)
    return np.asarray(expit(logit(bounded) * calibration["temperature"]))


def sample_traces(
    directory: TraceDirectory, table: TraceTable, score_S: Floats, model: str, seed: int
) -> tuple[list[dict[str, Any]], str]:
    """Return right and wrong traces of a question drawn at random, and why they have no text.

    Returns:
        Traces with "name", "right", "scores" and "steps" (text, score, colour and its strength),
        and the reason where their text cannot be shown, else "".
    """
    right_Q = np.bincount(table.question_N, weights=table.correct_N, minlength=len(table.questions))
    traces_Q = np.bincount(table.question_N, minlength=len(table.questions))
    enough = np.minimum(right_Q, traces_Q - right_Q)
    # A question with enough of both kinds, where there is one.
    fit = np.flatnonzero(enough >= min(_SAMPLES, enough.max(initial=0)))
    fit = fit[traces_Q[fit] > 0]
    generator = np.random.default_rng([seed, 4])
    of_question = np.flatnonzero(table.question_N == generator.choice(fit))
    chosen = [
        trace
        for kind in (True, False)
        for trace in generator.permutation(of_question[table.correct_N[of_question] == kind])[
            :_SAMPLES
        ]
    ]
    rows: dict[int, dict[str, Any]] = {}
    columns = ("question_id", "trace_id", "token_ids", "boundary_positions", "extracted_answer")
    for numbers, part in rows_of_traces(directory, table.select(np.array(chosen)), columns):
        rows |= dict(zip(np.sort(chosen)[numbers].tolist(), part.to_pylist(), strict=True))
    try:
        tokenizer, reason = load_tokenizer(local_model(model)), ""
    except InputError as error:
        tokenizer, reason = None, str(error)
    samples = []
    for trace in chosen:
        row, first = rows[int(trace)], table.first_step_N[trace]
        scores = score_S[first : first + table.steps_N[trace]].tolist()
        samples.append(
            {
                "name": f"trace {row['trace_id']}",
                "question": row["question_id"],
                "answer": row["extracted_answer"],
                "right": bool(table.correct_N[trace]),
                "scores": scores,
                "steps": [] if tokenizer is None else _steps(tokenizer, row, scores),
                "more": max(0, len(scores) - _MOST_STEPS),
            }
        )
    return samples, reason


def _steps(tokenizer: Any, row: Mapping[str, Any], scores: list[float]) -> list[dict[str, Any]]:
    steps, start = [], 0
    for position, score in list(zip(row["boundary_positions"], scores, strict=True))[:_MOST_STEPS]:
        text = tokenizer.decode(row["token_ids"][start : position + 1]).strip()
        start = position + 1
        if len(text) > _MOST_CHARACTERS:
            text = text[: _MOST_CHARACTERS - 1] + "…"
        steps.append(
            {
                "text": text,
                "score": score,
                "colour": "right" if score >= 0.5 else "wrong",
                "strength": round(5 + 110 * abs(score - 0.5)),
            }
        )
    return steps


def _missing(data: TrainingData, outcome: Mapping[str, Any], no_text: str) -> list[str]:
    """Return what the report does not have, and why."""
    missing = [
        f"{entry['label']}: {entry['not_computed']}"
        for entry in outcome["baselines"].values()
        if "not_computed" in entry
    ]
    if not any("label" in entry for entry in outcome["baselines"].values()):
        missing.append("Baselines: left out by --baselines none")
    votes = outcome["metrics"]["votes"]
    missing += [f"Vote by {name}: {reason}" for name, reason in votes["not_computed"].items()]
    if not votes["by_traces"]:
        missing.append("Votes: no test question has 4 traces")
    if not data.verified:
        missing.append("Checksums of the traces directory: not compared (--verify-checksums false)")
    if no_text:
        missing.append(f"Text of the sample traces: {no_text}")
    if outcome["metrics"]["steps"]["within_question"]["low"] is None:
        missing.append("Intervals within question: fewer than two test questions have both labels")
    return missing


def _card_rows(card: ScorerCard) -> list[tuple[str, str]]:
    rows = []
    for name, value in dataclasses.asdict(card).items():
        if name == "metrics":
            continue
        if isinstance(value, dict):
            rows += [(f"{name}.{key}", _plain(item)) for key, item in value.items()]
        else:
            rows.append((name, _plain(value)))
    return rows


def _plain(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 240 else text[:239] + "…"
