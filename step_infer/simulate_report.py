"""The report of a simulation: pictures, tables, one HTML file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from step_infer.eval_format import HEADINGS, TO, number, number_range, signed
from step_infer.files import atomic_write
from step_infer.report_page import render_page
from step_infer.simulate_config import METHODS
from step_infer.simulate_figures import against_auroc, auroc_needed
from step_infer.simulate_question import FIGURES

_TEMPLATE = "simulate_report.html.j2"


def write_simulation_report(path: Path | str, results: Mapping[str, Any]) -> None:
    """Write the report of `simulate_run.simulate_all`'s results, atomically."""
    with atomic_write(path, "w") as file:
        file.write(render_simulation_report(results))


def render_simulation_report(results: Mapping[str, Any]) -> str:
    """Return the report's HTML."""
    rows = results["cells"]
    unit = results["timing"]["unit"]
    headings = {name: HEADINGS[name] for name in FIGURES}
    if unit != "seconds":
        headings["seconds"] = "Engine steps"
    check = results["check"]
    return render_page(
        _TEMPLATE,
        source=results["source"],
        timing=results["timing"],
        unit_title=headings["seconds"],
        at=results["settings"]["auroc_at"],
        mean_tokens=results["mean_tokens"],
        scaled=len(results["settings"]["length_scale"]) > 1,
        break_even=[{**row, **break_even_words(row)} for row in results["break_even"]],
        needed=auroc_needed(results["break_even"]) if results["break_even"] else "",
        needed_words=needed_words(results["break_even"]),
        pictures=_pictures(rows, headings["seconds"].lower() + " per question"),
        check=check,
        check_rows=[] if check is None else check_rows(check),
        check_words=[] if check is None else check_words(check),
        rows=rows,
        labels={name: words[0] for name, words in METHODS.items()},
        headings=headings,
        number=number,
        number_range=number_range,
        settings=[(name, str(value)) for name, value in results["settings"].items()],
    )


def break_even_words(row: Mapping[str, Any]) -> dict[str, str]:
    """Return a break-even AUROC and its interval in words."""

    def words(value: float | None) -> str:
        if value is None:
            return f"above {row['highest']:.2f}"
        return f"{value:.2f} or less" if value <= row["lowest"] else f"{value:.2f}"

    ends = words(row["low"]), words(row["high"])
    return {
        "words": words(row["value"]),
        "range": ends[0] if ends[0] == ends[1] else f" {TO} ".join(ends),
    }


def needed_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return which KV budget asks for the best scorer, as a sentence; nothing without rows."""
    if not rows:
        return ""

    def need(row: Mapping[str, Any]) -> float:
        return 1.0 if row["value"] is None else float(row["value"])

    hardest = max(rows, key=need)
    return (
        f"The highest need is at {hardest['num_traces']} traces and a KV budget of "
        f"{hardest['kv_budget']:g}: {break_even_words(hardest)['words']}."
    )


def check_rows(check: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return predicted against measured, as words, figure by figure."""
    rows = []
    for name in FIGURES:
        for method, found in check["methods"].items():
            pair = found["figures"][name]
            error = "none" if pair["predicted"] == pair["measured"] else "no ratio"
            if pair["error"] is not None:
                error = f"{signed(100 * pair['error'])} %"
            rows.append(
                {
                    "name": HEADINGS[name],
                    "method": METHODS[method][0],
                    "predicted": number(name, pair["predicted"]),
                    "measured": number(name, pair["measured"]),
                    "error": error,
                }
            )
    return rows


def check_words(check: Mapping[str, Any]) -> list[str]:
    """Return what a check shows beside its table, a sentence each."""
    sentences = []
    step = check["methods"].get("step")
    if step is not None:
        sentences.append(
            f"In {step['same_victims']} of {step['questions']} questions exactly the predicted "
            "traces were pruned."
        )
    speed = check["seconds_step_against_sc"]
    if speed is not None:
        sentences.append(
            f"Seconds of STEP against SC: predicted {signed(100 * speed['predicted'])} %, "
            f"measured {signed(100 * speed['measured'])} %."
        )
    return sentences


def _pictures(rows: Sequence[Mapping[str, Any]], unit: str) -> list[dict[str, str]]:
    places = list(dict.fromkeys((row["num_traces"], row["length_scale"]) for row in rows))
    pictures = []
    for index, (count, scale) in enumerate(places):
        here = [r for r in rows if (r["num_traces"], r["length_scale"]) == (count, scale)]
        title = f"{count} traces a question"
        if len({place[1] for place in places}) > 1:
            title += f", length x {scale:g}"
        pictures.append(
            {
                "title": title,
                "accuracy": against_auroc(here, "accuracy", "accuracy", f"sim-accuracy-{index}"),
                "seconds": against_auroc(here, "seconds", unit, f"sim-seconds-{index}"),
            }
        )
    return pictures
