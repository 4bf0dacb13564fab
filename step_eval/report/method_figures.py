"""The report's pictures that compare methods: accuracy and cost, time, what stopping traces did."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from step_eval.report.figures import (
    HEIGHT,
    INK,
    MARKERS,
    MUTED,
    RIGHT,
    WAITING,
    WRONG,
    draw,
    drawn_ends,
    fitting_columns,
    legend_above,
)

_LINE = 0.19  # inches that a line of a legend takes


def accuracy_against(
    results: Mapping[str, Any], metric: str, label: str, colours: Mapping[str, str]
) -> str:
    """Draw each method's accuracy against a cost, with the 95 % intervals of both.

    Args:
        results: what `results.build_results` returns.
        metric: the cost, a figure of its "shared" methods.
        label: what stands at its axis.
        colours: each method's colour.
    """
    methods = results["shared"]["methods"]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for index, (name, found) in enumerate(methods.items()):
            x, y = found[metric], found["accuracy"]
            marker = MARKERS[index % len(MARKERS)]
            axes.errorbar(
                [x["value"]],
                [y["value"]],
                xerr=_bars(x),
                yerr=_bars(y),
                fmt=marker,
                markersize=8,
                color=colours[name],
                elinewidth=1.6,
                capsize=3,
            )
            title = results["methods"][name]["label"]
            axes.plot([], [], marker, linestyle="none", color=colours[name], label=title)
        most = max(drawn_ends(found[metric])[1] for found in methods.values())
        axes.set_xlim(0, most * 1.08 or 1)
        low = min(drawn_ends(found["accuracy"])[0] for found in methods.values())
        high = max(drawn_ends(found["accuracy"])[1] for found in methods.values())
        room = max(0.1 * (high - low), 0.02)
        axes.set_ylim(max(low - room, -0.02), min(high + room, 1.02))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlabel(label)
        axes.set_ylabel("accuracy")
        legend_above(axes)

    labels = [results["methods"][name]["label"] for name in methods]
    lines = -(-len(methods) // fitting_columns(labels, 3))
    height = HEIGHT + _LINE * (lines - 1)
    return draw(f"accuracy-{metric}", f"Accuracy of each method against {label}", paint, height)


def trace_seconds(results: Mapping[str, Any]) -> str:
    """Draw how many seconds a trace decodes and how many it waits, method by method."""
    methods = results["shared"]["methods"]
    labels = [results["methods"][name]["label"] for name in methods]
    place_M = np.arange(len(methods))

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for key, words, colour, shift in (
            ("running_s", "decoding", RIGHT, -0.19),
            ("waiting_s", "waiting for memory", WAITING, 0.19),
        ):
            found = [method[key] for method in methods.values()]
            axes.barh(
                place_M + shift,
                [f["value"] for f in found],
                0.36,
                xerr=np.concatenate([_bars(f) for f in found], axis=1),
                color=colour,
                capsize=2.5,
                error_kw={"color": INK, "ecolor": INK, "elinewidth": 1.2},
                label=words,
            )
        axes.set_yticks(place_M, labels)
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("seconds a trace")
        legend_above(axes)

    words = "Seconds that a trace decodes and waits, for each method"
    return draw("trace-seconds", words, paint, 1.2 + 0.42 * len(methods))


def stop_bins(name: str, bins: Sequence[Mapping[str, float]], label: str, percent: bool) -> str:
    """Draw how many stopped traces lie in each bin, by how their twins ended.

    Args:
        name: of the picture.
        bins: rows with "low", "high", "right" and "wrong".
        label: what the bins are of.
        percent: whether that is a part of a whole.
    """
    low_B = np.array([row["low"] for row in bins])
    width_B = np.array([row["high"] for row in bins]) - low_B
    right_B = np.array([row["right"] for row in bins])
    wrong_B = np.array([row["wrong"] for row in bins])

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        bar = {"align": "edge", "width": width_B * 0.9}
        axes.bar(low_B, right_B, color=RIGHT, label=f"would be right: {right_B.sum():,}", **bar)
        axes.bar(
            low_B,
            wrong_B,
            bottom=right_B,
            color=WRONG,
            alpha=0.55,
            label=f"would be wrong: {wrong_B.sum():,}",
            **bar,
        )
        if percent:
            axes.set_xlim(0, 1)
            axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_xlabel(label)
        axes.set_ylabel("stopped traces", color=MUTED)
        legend_above(axes, columns=2)

    return draw(name, f"Stopped traces by {label}, and how their twins ended", paint)


def _bars(found: Mapping[str, Any]) -> list[list[float]]:
    """Return an interval as lengths below and above the value, none negative."""
    low, high = drawn_ends(found)
    below, above = found["value"] - low, high - found["value"]
    return [[max(below, 0.0)], [max(above, 0.0)]]
