"""The report: one HTML file that needs nothing beside it."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from step_eval.comparison import METRICS
from step_eval.records import QuestionRecord
from step_eval.report.figures import (
    SERIES,
    auroc_curves,
    kv_over_time,
    score_curves,
    series_colours,
)
from step_eval.report.method_figures import accuracy_against, stop_bins, trace_seconds
from step_eval.report.page import render_page
from step_eval.report.words import (
    EXPLAINED,
    HEADINGS,
    NO_INTERVAL,
    bin_rows,
    branch_rows,
    change,
    cost_words,
    decided_rows,
    in_text,
    lost_words,
    number,
    number_range,
    replica_words,
    saved_words,
    seconds_words,
    sentence,
    shared_rows,
    stop_rule_rows,
    unfinished,
    unknown_words,
    vote_words,
)
from step_eval.statistics import FEW_QUESTIONS
from step_eval.stops import TENTHS
from step_eval.votes import LOWEST_CONFIDENCE
from step_infer.storage.files import atomic_write

_TEMPLATE = "report.html.j2"
_HEADLINE_METRICS = ("accuracy", "seconds", "tokens")


def write_report(
    path: Path | str,
    results: Mapping[str, Any],
    records: Mapping[str, Sequence[QuestionRecord]],
) -> None:
    """Write the report, atomically.

    Args:
        path: the HTML file.
        results: what `results.build_results` returns.
        records: each method's records; those with a series give the pictures over time.
    """
    with atomic_write(path, "w") as file:
        file.write(render_report(results, records))


def render_report(
    results: Mapping[str, Any], records: Mapping[str, Sequence[QuestionRecord]]
) -> str:
    """Return the report's HTML; see `write_report`."""
    methods = results["methods"]
    colours = series_colours(list(methods))
    return render_page(
        _TEMPLATE,
        results=results,
        methods=methods,
        variables={name: f"--series-{i % len(SERIES)}" for i, name in enumerate(methods)},
        headings=HEADINGS,
        explained=EXPLAINED,
        number=number,
        number_range=number_range,
        change=change,
        vote_words=vote_words,
        headlines=[_headline(results, name) for name in results["comparisons"]],
        worse=[_worse(results, name) for name in results["comparisons"]],
        branches=branch_rows(results),
        decided=decided_rows(results),
        stop_rules=stop_rule_rows(results),
        curves=[
            {
                "label": methods[name]["label"],
                "name": name,
                "scores": score_curves(curve, name),
                "auroc": auroc_curves(curve, name),
                "points": {
                    key: _point(curve["auroc"], key, (0.3, 0.5, 0.8, 1.0))
                    for key in ("overall", "within")
                },
                "aggregator": curve["aggregator"],
                "questions": max(point["questions"] for point in curve["auroc"]),
            }
            for name, curve in results["curves"].items()
        ],
        costs=[
            {
                "figure": accuracy_against(results, metric, f"{metric} per question", colours),
                "words": cost_words(results, metric, unit),
            }
            for metric, unit in (("seconds", "s"), ("tokens", "tokens"))
        ],
        times_figure=trace_seconds(results),
        times_words=seconds_words(results),
        shared_rows=shared_rows(results),
        stopping=[_stopping(results, name) for name in results["stops"]],
        kv_questions=_kv_pictures(results, records, colours),
        settings=_settings(results),
        card=_card(results.get("card")),
        missing=unfinished(results),
        few=FEW_QUESTIONS,
    )


def _headline(results: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return what a comparison comes to, in a few words a figure."""
    comparison = results["comparisons"][name]
    figures = []
    for metric in _HEADLINE_METRICS:
        difference = comparison["differences"][metric]
        value, ends = change(metric, difference)
        figures.append(
            {
                "name": in_text(metric),
                "value": value,
                "interval": ends if ends == NO_INTERVAL else f"95 % interval {ends}",
                "verdict": difference["verdict"],
            }
        )
    return {
        "label": results["methods"][name]["label"],
        "baseline": results["methods"][comparison["baseline"]]["label"],
        "questions": comparison["questions"],
        "pairs": comparison["pairs"],
        "figures": figures,
    }


def _worse(results: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return what a method does worse than the baseline, shown or not."""
    comparison = results["comparisons"][name]
    shown, hinted = [], []
    for metric, difference in comparison["differences"].items():
        if difference["verdict"] == "worse":
            shown.append(sentence(metric, difference))
        elif difference["verdict"] == "no difference shown" and _leans_worse(metric, difference):
            hinted.append(sentence(metric, difference))
    return {
        "label": results["methods"][name]["label"],
        "baseline": results["methods"][comparison["baseline"]]["label"],
        "shown": shown,
        "hinted": hinted,
        "lost": comparison["lost"],
        "gained": comparison["gained"],
    }


def _stopping(results: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return what the page shows of the traces that a method stopped."""
    stopped = results["stops"][name]
    baseline = results["methods"][results["baseline"]]["label"]
    pictures = []
    if stopped["known"]:
        score = "score" if results["methods"][name]["vote"] != LOWEST_CONFIDENCE else "confidence"
        for key, title, label, kind in (
            (
                "saved_bins",
                "What each stop saved",
                "tokens still to come",
                "tokens",
            ),
            ("by_progress", "Where they were stopped", "part of the full length", "percent"),
            ("by_score", f"At which {score}", f"{score} at the stop", "score"),
        ):
            if stopped[key]:
                figure = stop_bins(f"{key}-{name}", stopped[key], label, kind == "percent")
                rows = bin_rows(stopped[key], kind)
                pictures.append({"title": title, "figure": figure, "label": label, "rows": rows})
    return {
        "label": results["methods"][name]["label"],
        "baseline": baseline,
        "known": stopped["known"],
        "pictures": pictures,
        "saved": saved_words(stopped, baseline) if stopped["known"] else "",
        "lost": lost_words(stopped, baseline) if stopped["known"] else "",
        "unknown": unknown_words(stopped),
        "questions": [row for row in stopped["questions"] if row["right"]],
    }


def _leans_worse(metric: str, difference: Mapping[str, Any]) -> bool:
    return bool(difference["difference"]["value"] * METRICS[metric][1] < 0)


def _point(points: Sequence[Mapping[str, Any]], key: str, at: Sequence[float]) -> list[str]:
    wanted = [TENTHS.index(tenth) for tenth in at]
    return ["none" if points[i][key] is None else f"{points[i][key]:.2f}" for i in wanted]


def _kv_pictures(
    results: Mapping[str, Any],
    records: Mapping[str, Sequence[QuestionRecord]],
    colours: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Return the pictures over time, question by question, those that most methods have first."""
    by_question: dict[str, dict[str, QuestionRecord]] = {}
    for name, group in records.items():
        for record in group:
            if record.series is not None and record.series.time_s:
                by_question.setdefault(record.question_id, {})[name] = record
    pictures = []
    for question_id, found in by_question.items():
        end_s = max(record.series.time_s[-1] for record in found.values() if record.series)
        # Of branches there are at most as many at once as traces were stopped.
        most = max(sum(t.parent is None for t in record.traces) for record in found.values())
        pictures.append(
            {
                "question_id": question_id,
                "methods": [
                    {
                        "label": results["methods"][name]["label"],
                        "seconds": number("seconds", record.seconds),
                        "capacity": record.kv_capacity_tokens,
                        "figure": kv_over_time(
                            record, results["methods"][name]["label"], colours[name], end_s, most
                        ),
                    }
                    for name, record in found.items()
                ],
            }
        )
    return sorted(pictures, key=lambda picture: -len(picture["methods"]))


def _settings(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the run's settings as rows for the reader."""
    budget = results["budget"]
    size = "no limit but the machine's memory"
    if budget["tokens"] is not None:
        size = f"{budget['tokens']:,} tokens"
        if budget["mean_response_tokens"] is not None:
            mean = budget["mean_prompt_tokens"] + budget["mean_response_tokens"]
            settings = results["settings"]
            size += (
                f" = {settings['kv_budget']:g} x {settings['num_traces']} traces x {mean:,.0f} "
                f"tokens ({budget['source']})"
            )
    rows = [
        ("Model", results["model"]),
        ("Scorer", results["scorer"] or "none"),
        ("Questions", f"{results['questions']['file']}, {results['questions']['asked']} questions"),
        ("Repeats", str(results["questions"]["repeats"])),
        ("KV budget", size),
        ("Device", results["device"] or "unknown"),
        *([("Replicas", replica_words(results["replicas"]))] if results["replicas"] else []),
        ("Versions", ", ".join(f"{k} {v}" for k, v in results["versions"].items())),
        ("Command", shlex.join(["step-eval", *results["command"][1:]])),
        ("Commit", results["git_commit"] or "unknown"),
        ("Made", results["created"]),
    ]
    rows += [(name, _plain(value)) for name, value in sorted(results["settings"].items())]
    return rows


def _card(card: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return the scorer card as rows, with long values cut."""
    if card is None:
        return []
    rows = []
    for name, value in card.items():
        if isinstance(value, Mapping):
            rows += [(f"{name}.{key}", _plain(item)) for key, item in value.items()]
        else:
            rows.append((name, _plain(value)))
    return rows


def _plain(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 240 else text[:239] + "…"
