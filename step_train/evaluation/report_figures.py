"""The pictures of a training report."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from step_eval.report.figures import (
    MARK,
    MUTED,
    RIGHT,
    SERIES,
    WRONG,
    draw,
    legend_above,
    progress_axis,
)
from step_eval.statistics import Floats

_SCORER = SERIES[1]
_LINES = {
    "length": (SERIES[3], "-"),
    "step": (SERIES[5], ":"),
    "confidence": (SERIES[2], "-"),
    "question": (SERIES[0], "-"),
    "shuffled": (MUTED, "--"),
    "logistic": (SERIES[4], "-"),
}
_TALL = 3.7  # inches, with room for the legend of all baselines


def loss_curves(history: Sequence[Mapping[str, float]], best_epoch: int) -> str:
    """Draw training and validation loss by epoch."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        epochs = [row["epoch"] + 1 for row in history]
        axes.plot(epochs, [row["train_loss"] for row in history], color=SERIES[0], label="training")
        axes.plot(epochs, [row["val_loss"] for row in history], color=_SCORER, label="validation")
        axes.axvline(
            best_epoch, color=MARK, linestyle=":", linewidth=1.4, label=f"best, {best_epoch}"
        )
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss, nats a step")
        legend_above(axes)

    return draw("loss", "Loss in training and validation by epoch", paint)


def auroc_by_progress(metrics: Mapping[str, Any], baselines: Mapping[str, Any]) -> str:
    """Draw within-question AUROC of step scores by tenths of a trace, against baselines."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for name, rows in _curves(metrics, baselines, "by_progress"):
            _auroc(axes, name, [(row["from"] + row["to"]) / 2 for row in rows], rows, baselines)
        progress_axis(axes)
        _finish_auroc(axes)

    return draw("progress", "Within-question AUROC by progress", paint, height=_TALL)


def auroc_by_step(metrics: Mapping[str, Any], baselines: Mapping[str, Any]) -> str:
    """Draw within-question AUROC of step scores by step number, against baselines."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for name, rows in _curves(metrics, baselines, "by_step"):
            _auroc(
                axes, name, [(row["first"] * row["last"]) ** 0.5 for row in rows], rows, baselines
            )
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.minorticks_off()
        axes.set_xlabel("step number")
        _finish_auroc(axes)

    return draw("steps", "Within-question AUROC by step number", paint, height=_TALL)


def _curves(
    metrics: Mapping[str, Any], baselines: Mapping[str, Any], key: str
) -> list[tuple[str, list[dict[str, Any]]]]:
    curves = [("scorer", metrics[key])]
    curves += [(name, entry[key]) for name, entry in baselines.items() if key in entry]
    return [
        (name, [row for row in rows if row["within_question"]["value"] is not None])
        for name, rows in curves
    ]


def _auroc(
    axes: Axes,
    name: str,
    x: Sequence[float],
    rows: Sequence[Mapping[str, Any]],
    baselines: Mapping[str, Any],
) -> None:
    y = [row["within_question"]["value"] for row in rows]
    if name != "scorer":
        colour, style = _LINES[name]
        axes.plot(x, y, style, color=colour, linewidth=1.3, label=baselines[name]["label"])
        return
    known = [
        (at, row["within_question"])
        for at, row in zip(x, rows, strict=True)
        if row["within_question"]["low"] is not None
    ]
    if known:
        low, high = ([entry[end] for _, entry in known] for end in ("low", "high"))
        axes.fill_between(
            [at for at, _ in known], low, high, color=_SCORER, alpha=0.16, linewidth=0
        )
    axes.plot(x, y, color=_SCORER, marker="o", markersize=4, label="scorer", zorder=3)


def _finish_auroc(axes: Axes) -> None:
    axes.axhline(0.5, color=MUTED, linewidth=1, linestyle=":")
    low, high = axes.get_ylim()
    axes.set_ylim(max(0.0, min(low, 0.44)), min(1.0, max(high, 0.6)))
    axes.set_ylabel("AUROC within question")
    legend_above(axes, columns=2)


def calibration_curve(
    after: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]]
) -> str:
    """Draw the share of right steps against their mean score, before and after the temperature."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=":")
        for rows, colour, label in (
            (before, SERIES[0], "before"),
            (after, _SCORER, "after the temperature"),
        ):
            axes.plot(
                [row["score"] for row in rows],
                [row["right"] for row in rows],
                color=colour,
                marker="o",
                markersize=4,
                label=label,
            )
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xlabel("mean step score")
        axes.set_ylabel("steps of right traces")
        legend_above(axes)

    return draw("calibration", "Share of right traces against the step score", paint)


def score_distribution(name: str, label_S: Any, score_S: Floats, xlabel: str) -> str:
    """Draw how the scores of right and of wrong samples are spread."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        edges = np.linspace(0, 1, 26)
        for right, colour, side in ((True, RIGHT, "right"), (False, WRONG, "wrong")):
            scores = score_S[label_S == right]
            if len(scores):
                share = np.histogram(scores, edges)[0] / len(scores)
                axes.stairs(share, edges, fill=True, color=colour, alpha=0.3)
                label = f"{side}, {len(scores):,}"
                axes.stairs(share, edges, color=colour, linewidth=1.6, label=label)
        axes.set_xlim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel(xlabel)
        axes.set_ylabel("share of them")
        legend_above(axes)

    return draw(f"spread-{name}", "Spread of scores of right and of wrong traces", paint)


def sample_curves(samples: Sequence[Mapping[str, Any]]) -> str:
    """Draw the step scores of a few traces, numbered as in the text."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for number, sample in enumerate(samples):
            scores = sample["scores"]
            axes.plot(
                range(1, len(scores) + 1),
                scores,
                color=RIGHT if sample["right"] else WRONG,
                linestyle=("-", "--")[number % 2],
                marker="o",
                markersize=3,
                linewidth=1.5,
                label=f"{sample['name']}, {'right' if sample['right'] else 'wrong'}",
            )
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set_ylim(0, 1)
        axes.set_xlabel("step number")
        axes.set_ylabel("step score")
        legend_above(axes, columns=2)

    return draw("samples", "Step scores of the sample traces", paint, height=_TALL)
