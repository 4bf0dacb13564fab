"""The pictures of a simulation's report."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from step_infer.report_figures import MARKERS, MUTED, SERIES, draw, legend_above
from step_infer.simulate_sweep import RECORDED


def auroc_needed(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw the break-even AUROC against the KV budget, a line for each number of traces.

    Args:
        rows: what `simulate_sweep.break_even` returns. A need above the best scorer is drawn at
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
                axes.fill_between(
                    x,
                    [f["low"] for f in found],
                    [f["high"] for f in found],
                    color=colour,
                    alpha=0.12,
                    linewidth=0,
                )
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
