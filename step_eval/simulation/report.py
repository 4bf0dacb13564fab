"""The report of a simulation: pictures and tables in one HTML file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from step_eval.methods.registry import base_name
from step_eval.report.figures import MARKERS, MUTED, SERIES, draw, drawn_ends, legend_above
from step_eval.report.page import render_page
from step_eval.report.words import HEADINGS, TO, number, number_range, signed
from step_eval.simulation.config import AUROC_AT, METHODS, method_label
from step_eval.simulation.question import DECIDING, MEASURED
from step_eval.simulation.sweep import RECORDED
from step_infer.storage.files import atomic_write

_TEMPLATE = Path(__file__).with_name("report.html.j2")


def write_simulation_report(path: Path | str, results: Mapping[str, Any]) -> None:
    """Write the report of `run.simulate_all`'s results, atomically."""
    with atomic_write(path, "w") as file:
        file.write(render_simulation_report(results))


def render_simulation_report(results: Mapping[str, Any]) -> str:
    """Return the report's HTML."""
    rows = results["cells"]
    unit = results["timing"]["unit"]
    headings = shown_headings(rows, unit)
    check = results["check"]
    return render_page(
        _TEMPLATE,
        source=results["source"],
        timing=results["timing"],
        unit_title=headings["seconds"],
        at=AUROC_AT,
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
        label=method_label,
        headings=headings,
        number=number,
        number_range=number_range,
        settings=[(name, str(value)) for name, value in results["settings"].items()],
    )


def shown_headings(rows: Sequence[Mapping[str, Any]], unit: str) -> dict[str, str]:
    """Return the figures to be shown, and their headings.

    Args:
        rows: what `sweep.summaries` returns.
        unit: of time: "seconds" or "steps".
    """
    headings = {name: HEADINGS[name] for name in MEASURED}
    if unit != "seconds":
        headings["seconds"] = "Engine steps"
    stops = any(row["method"] != base_name(row["method"]) for row in rows)
    return headings | DECIDING if stops else headings


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
    for name in MEASURED:
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


def auroc_needed(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw the break-even AUROC against the KV budget, a line for each number of traces.

    Args:
        rows: what `sweep.break_even` returns. A need above the best scorer is drawn at
            that one's AUROC.
    """

    def paint(picture: Figure) -> None:
        axes: Axes = picture.subplots()
        places = list(dict.fromkeys((row["num_traces"], row["length_scale"]) for row in rows))
        scaled = len({scale for _, scale in places}) > 1
        for index, (count, scale) in enumerate(places):
            here = [r for r in rows if (r["num_traces"], r["length_scale"]) == (count, scale)]
            here.sort(key=lambda row: row["kv_budget"])
            value, low, high = (
                [row["highest"] if row[key] is None else row[key] for row in here]
                for key in ("value", "low", "high")
            )
            colour = SERIES[(index + 1) % len(SERIES)]
            label = f"{count} traces" + (f", x {scale:g}" if scaled else "")
            x = [row["kv_budget"] for row in here]
            axes.fill_between(x, low, high, color=colour, alpha=0.1, linewidth=0)
            marker = MARKERS[index % len(MARKERS)]
            axes.plot(x, value, color=colour, marker=marker, markersize=5, label=label)
        axes.set_xlabel("KV budget, part of what all traces need")
        axes.set_ylabel("AUROC needed")
        legend_above(axes, columns=2)

    words = "Break-even AUROC against the KV budget, a line for each number of traces"
    lines = -(-len({(row["num_traces"], row["length_scale"]) for row in rows}) // 2)
    return draw("sim-needed", words, paint, 3.0 + 0.19 * (lines - 1))


def against_auroc(rows: Sequence[Mapping[str, Any]], figure: str, label: str, name: str) -> str:
    """Draw a figure of STEP against AUROC, one line for each KV budget, with SC's level."""

    def paint(picture: Figure) -> None:
        axes: Axes = picture.subplots()
        for index, budget in enumerate(dict.fromkeys(row["kv_budget"] for row in rows)):
            colour = SERIES[(index + 1) % len(SERIES)]
            here = [row for row in rows if row["kv_budget"] == budget]
            step = [row for row in here if row["method"] == "step"]
            made = sorted((r for r in step if r["scorer"] != RECORDED), key=lambda r: r["auroc"])
            if made:
                x = [row["auroc"] for row in made]
                found = [row["figures"][figure] for row in made]
                low, high = zip(*map(drawn_ends, found), strict=True)
                axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
                y = [f["value"] for f in found]
                axes.plot(x, y, color=colour, marker="o", markersize=4, label=f"KV {budget:g}")
            for row in step:
                if row["scorer"] == RECORDED and row["auroc"] is not None:
                    value = row["figures"][figure]["value"]
                    axes.plot([row["auroc"]], [value], "X", color=colour, markersize=8)
            for row in here:
                if row["method"] == "sc":
                    value = row["figures"][figure]["value"]
                    axes.axhline(value, color=colour, linewidth=1.2, linestyle=":")
            voted = [r for r in here if r["method"] == "sc-score" and r["scorer"] != RECORDED]
            if voted and figure == "accuracy" and index == 0:
                voted.sort(key=lambda row: row["auroc"])
                axes.plot(
                    [row["auroc"] for row in voted],
                    [row["figures"][figure]["value"] for row in voted],
                    "--",
                    color=MUTED,
                    linewidth=1.4,
                    label="no pruning",
                )
        axes.set_xlabel("within-question AUROC of the scorer")
        axes.set_ylabel(label)
        if figure == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        else:
            axes.set_ylim(bottom=0)
        legend_above(axes)

    words = f"{label} of STEP against the scorer's AUROC, a line for each KV budget"
    return draw(name, words[0].upper() + words[1:], paint)
