"""The picture of a training run: loss, and held-out AUROC by trace progress."""

from pathlib import Path
from typing import Any

from step_infer.files import atomic_path

POOLED, WITHIN, NEUTRAL = "#4c72b0", "#dd8452", "#8c8c8c"


def draw_training(
    path: Path, history: list[dict[str, float]], best_epoch: int, metrics: dict[str, Any]
) -> None:
    """Write the picture as PNG.

    Args:
        path: the file.
        history: losses and validation metrics, one entry an epoch.
        best_epoch: the epoch whose weights were kept, from 1.
        metrics: of the test questions (`step_train.held_out.evaluate`).
    """
    # Not pyplot: it is global state, and looks for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    loss, steps, traces = figure.subplots(1, 3)
    _draw_loss(loss, history, best_epoch)
    _draw_progress(steps, metrics["by_progress"])
    _draw_aggregators(traces, metrics["trace_score"])
    for axes in (loss, steps, traces):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def _draw_loss(axes: Any, history: list[dict[str, float]], best_epoch: int) -> None:
    epochs = [row["epoch"] + 1 for row in history]
    axes.plot(epochs, [row["train_loss"] for row in history], color=NEUTRAL, label="training")
    axes.plot(epochs, [row["val_loss"] for row in history], color=POOLED, label="validation")
    axes.axvline(best_epoch, color=NEUTRAL, linestyle=":", label=f"best epoch {best_epoch}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(title="Loss", xlabel="epoch", ylabel="weighted cross-entropy, nats")
    axes.legend(frameon=False)


def _draw_progress(axes: Any, by_progress: list[dict[str, Any]]) -> None:
    for name, label, color in (
        ("auroc", "all questions pooled", POOLED),
        ("within_question", "within question", WITHIN),
    ):
        rows = [row for row in by_progress if row[name]["value"] is not None]
        middle = [50 * (row["from"] + row["to"]) for row in rows]
        axes.plot(middle, [row[name]["value"] for row in rows], "o-", color=color, label=label)
        low, high = ([row[name][end] for row in rows] for end in ("low", "high"))
        axes.fill_between(middle, low, high, color=color, alpha=0.2, linewidth=0)
    _finish_auroc(axes, "Step scores on test questions", "progress of the trace, % of its steps")


def _draw_aggregators(axes: Any, trace_score: dict[str, Any]) -> None:
    for name, by_fraction in trace_score.items():
        points = [
            (float(percent.rstrip("%")), entry["within_question"]["value"])
            for percent, entry in by_fraction.items()
            if entry["within_question"]["value"] is not None
        ]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", label=name)
    _finish_auroc(axes, "Trace scores within question", "steps seen so far, %")


def _finish_auroc(axes: Any, title: str, xlabel: str) -> None:
    axes.axhline(0.5, color=NEUTRAL, linestyle="--", linewidth=1)
    axes.set(title=title, xlabel=xlabel, ylabel="AUROC", xlim=(0, 103))
    axes.legend(frameon=False)
