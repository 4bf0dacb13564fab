"""The report's pictures: matplotlib drawings as SVG text that follows the page's colours.

Every colour drawn here stands for a CSS variable of the page, so that one picture serves a light
and a dark page. Nothing in the SVG points outside the page.
"""

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from step_eval.records import QuestionRecord
from step_eval.stops import TENTHS

# Colours that matplotlib draws with -> the page's variables. The values only need to be distinct.
INK, MUTED, GRID = "#010101", "#020202", "#030303"
RIGHT, WRONG = "#040404", "#050505"
MARK = "#060606"
WAITING = "#0d0d0d"
SERIES = tuple(f"#{n:02x}{n:02x}{n:02x}" for n in (*range(7, 13), *range(14, 20)))
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    RIGHT: "var(--right)",
    WRONG: "var(--wrong)",
    MARK: "var(--mark)",
    WAITING: "var(--waiting)",
    **{colour: f"var(--series-{index})" for index, colour in enumerate(SERIES)},
}

_STYLE = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 2,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
_WIDTH, HEIGHT = 4.3, 3.0  # inches; 310 x 216 points, about a phone's width


MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">", "h", "*")
"""One for each of SERIES, for those who cannot tell the colours apart."""


def series_colours(methods: Sequence[str]) -> dict[str, str]:
    """Return one colour for each method, the same in all pictures."""
    return {name: SERIES[index % len(SERIES)] for index, name in enumerate(methods)}


def draw(name: str, words: str, paint: Callable[[Figure], None], height: float = HEIGHT) -> str:
    """Return the SVG of a painted figure.

    Args:
        name: keeps its inner ids apart from other figures'.
        words: what it shows, for those who cannot see it.
        paint: draws it.
        height: inches.
    """
    with rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        paint(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _embeddable(buffer.getvalue(), name, words)


def _embeddable(svg: str, name: str, words: str) -> str:
    """Return the bare <svg> element: no metadata, no namespaces, page colours, a fluid width."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = svg.replace("xlink:href", "href")
    box = re.search(r'viewBox="([^"]*)"', svg)
    assert box is not None
    opening = f'<svg viewBox="{box[1]}" role="img" aria-label="{html.escape(words)}">'
    svg = opening + svg[svg.index(">") + 1 :]
    # Groups are named figure_1, axes_1 and so on in every drawing.
    svg = re.sub(r'<g id="([^"]*)"', rf'<g id="{name}-\1"', svg)
    svg = re.sub(r"font: (\d[\d.]*)px [^;\"]*", r"font-size: \1px; font-family: inherit", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg.strip()


def score_curves(curve: Mapping[str, Any], method: str) -> str:
    """Draw step scores of right and wrong traces by progress: mean, and 10th to 90th percentile."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for side, colour in (("right", RIGHT), ("wrong", WRONG)):
            points = curve[side]
            rows = [
                (tenth - 0.05, mean, low, high)
                for tenth, mean, low, high in zip(
                    TENTHS, points["mean"], points["low"], points["high"], strict=True
                )
                if mean is not None
            ]
            if not rows:
                continue
            x, mean, low, high = zip(*rows, strict=True)
            label = f"{side}, {points['traces']:,} traces"
            axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
            axes.plot(x, mean, color=colour, marker="o", markersize=4, label=label)
        progress_axis(axes)
        axes.set_ylim(0, 1)
        axes.set_ylabel("step score")
        legend_above(axes)

    return draw(f"scores-{method}", "Step scores of right and of wrong traces by progress", paint)


def auroc_curves(curve: Mapping[str, Any], method: str) -> str:
    """Draw AUROC of the trace score by progress, overall and within question."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        values = []
        for key, label, colour, style in (
            ("overall", "all traces", SERIES[0], "--"),
            ("within", "within question", SERIES[1], "-"),
        ):
            points = [p for p in curve["auroc"] if p[key] is not None]
            if points:
                y = [p[key] for p in points]
                values += y
                x = [p["progress"] for p in points]
                axes.plot(x, y, style, color=colour, marker="o", markersize=4, label=label)
        axes.axhline(0.5, color=MUTED, linewidth=1, linestyle=":")
        axes.annotate(
            "chance",
            (1.0, 0.5),
            xytext=(0, -3),
            textcoords="offset points",
            ha="right",
            va="top",
            color=MUTED,
        )
        progress_axis(axes)
        axes.set_ylim(min([0.44, *(v - 0.03 for v in values)]), 1)
        axes.set_ylabel("AUROC of the trace score")
        legend_above(axes)

    return draw(f"auroc-{method}", "AUROC of the trace score by progress", paint)


def kv_over_time(
    record: QuestionRecord, label: str, colour: str, end_s: float, most_traces: int
) -> str:
    """Draw one question's KV use, running and waiting traces over time, with marks.

    Args:
        record: a record with a series.
        label: the method's name.
        colour: the method's colour.
        end_s: right end of the time axis, shared by all methods.
        most_traces: upper end of the count axis, shared by all methods.
    """
    series = record.series
    assert series is not None
    time_S = np.array([0.0, *series.time_s])
    use_S = np.array([0.0, *series.kv_use])
    pruned_s = [trace.finished_s for trace in record.traces if trace.pruned]
    jumps = np.diff(np.array([0, *series.preemptions]))
    preempted_s = np.repeat(series.time_s, jumps.clip(min=0))

    def paint(figure: Figure) -> None:
        upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 2))
        upper.fill_between(time_S, use_S, color=colour, alpha=0.16, linewidth=0)
        upper.plot(time_S, use_S, color=colour, linewidth=1.6)
        for times, marker, words, height in (
            (pruned_s, "v", "pruned", 1.11),
            (preempted_s, "|", "preempted", 1.11),
        ):
            if len(times):
                upper.plot(
                    times,
                    np.full(len(times), height),
                    marker,
                    color=MARK,
                    markersize=6,
                    linestyle="none",
                    label=f"{words}: {len(times)}",
                )
        upper.set_ylim(0, 1.2)
        upper.set_yticks([0, 0.5, 1])
        upper.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        upper.set_ylabel("KV cache")
        legend_above(upper, empty=f"{label}: nothing pruned or preempted")
        lower.stackplot(
            time_S,
            [0, *series.running],
            [0, *series.waiting],
            colors=[colour, WAITING],
            labels=["running", "waiting"],
            alpha=0.55,
            linewidth=0,
        )
        lower.set_xlim(0, end_s)
        lower.set_ylim(0, most_traces * 1.05)
        lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        lower.set_xlabel("seconds since the question was asked")
        lower.set_ylabel("traces")
        legend_above(lower)

    words = f"{label}, question {record.question_id}: KV cache in use and traces over time"
    return draw(f"kv-{record.method}-{record.question_id}", words, paint, height=4.1)


def drawn_ends(found: Mapping[str, Any]) -> tuple[float, float]:
    """Return where an interval is drawn from and to: at the value, where there is none."""
    if found["low"] is None:
        return found["value"], found["value"]
    return found["low"], found["high"]


def progress_axis(axes: Axes) -> None:
    """Make the horizontal axis the part of a trace that is generated, 0 to 1."""
    axes.set_xlim(0, 1.01)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("part of the trace generated")


def legend_above(axes: Axes, empty: str | None = None, columns: int = 3) -> None:
    """Put the legend over the plot, where it hides nothing; `empty` is said without one.

    It has `columns` columns, or fewer where these would not fit beside each other.
    """
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles,
            labels,
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=fitting_columns(labels, columns),
            borderaxespad=0.2,
            handletextpad=0.5,
            handlelength=1.5,
            columnspacing=1.0,
        )
    elif empty is not None:
        axes.set_title(empty, loc="left", fontsize=9.5, color=MUTED)


def fitting_columns(labels: Sequence[str], most: int) -> int:
    """Return how many columns of a legend fit in a picture's width; the page chooses the font."""
    for columns in range(min(most, len(labels)), 1, -1):
        rows = -(-len(labels) // columns)
        firsts = range(0, len(labels), rows)
        widths = [max(map(len, labels[first : first + rows])) * 5.2 + 28 for first in firsts]
        if sum(widths) <= _WIDTH * 72 - 40:  # points; what stands left of the plot takes some
            return columns
    return 1
