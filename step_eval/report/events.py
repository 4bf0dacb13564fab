"""The page of an event log: KV use over time with the prunes, scores, what pruning freed."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from step_eval.recorded.events import read_events
from step_eval.report.figures import MARK, SERIES, draw, legend_above
from step_eval.report.page import render_page
from step_infer.errors import InputError
from step_infer.replies import IMPLICIT_GROUP
from step_infer.storage.files import atomic_write, check_output
from step_infer.wire import CLOSED_REASONS

_TEMPLATE = "events.html.j2"
_MOST_GROUPS = 50
_NAME_LENGTH = 60

Events = Sequence[dict[str, Any]]


def write_event_report(logs: Sequence[str], out: str) -> None:
    """Draw event logs as one HTML page, atomically.

    Raises:
        InputError: no log is named, one cannot be read, or the page cannot be written or would
            take the place of a log.
    """
    if not logs:
        raise InputError("Expected an event log, found none. Hint: step-eval events FILE.")
    check_output(out, *logs)
    page = render_event_report(*read_events(logs), [Path(log).name for log in logs])
    with atomic_write(out, "w") as file:
        file.write(page)


def render_event_report(events: Events, left_out: int, names: Sequence[str]) -> str:
    """Return the page of events that `read_events` gave.

    Args:
        events: in the order of their times.
        left_out: lines that could not be read.
        names: of the logs.
    """
    kinds = Counter(_kind(event) for event in events)
    pruned = [event for event in events if event["event"] == "prune"]
    return render_page(
        _TEMPLATE,
        names=names,
        left_out=left_out,
        kinds=kinds,
        count=len(events),
        seconds=events[-1]["time"] - events[0]["time"],
        peak=max(event["kv_use"] for event in events),
        tokens=sum(map(_own_tokens, events)),
        pruned_tokens=sum(map(_own_tokens, pruned)),
        blocks=sum(event.get("freed_kv_blocks", 0) for event in pruned),
        kv=_kv_use(events, names),
        scores=_scores(events),
        lengths=_lengths(events),
        freed=_freed(events),
        groups=group_rows(events)[:_MOST_GROUPS],
        num_groups=len({event["group"] for event in events}),
    )


def _own_tokens(event: Mapping[str, Any]) -> int:
    """Return the tokens that a trace generated itself: a branch inherits others."""
    return int(event["tokens"]) - int(event.get("inherited", 0))


def _kind(event: Mapping[str, Any]) -> str:
    """Return what became of a trace; one that its client ended may be told apart by the reason."""
    reason = event.get("reason")
    return (
        str(reason)
        if event["event"] == "abort" and reason in CLOSED_REASONS
        else str(event["event"])
    )


def group_rows(events: Events) -> list[dict[str, Any]]:
    """Return what became of each group, those with most pruned traces first."""
    groups: dict[str | None, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        groups[event["group"]].append(event)
    rows = []
    for name, found in groups.items():
        kinds = Counter(_kind(event) for event in found)
        scores = {
            kind: [e["score"] for e in found if e["event"] == kind and e["score"] is not None]
            for kind in ("prune", "finish")
        }
        rows.append(
            {
                "name": "no group" if name is None else _shown(name),
                "traces": len(found),
                **{kind: kinds[kind] for kind in ("prune", "finish", "abort", *CLOSED_REASONS)},
                "pruned_score": float(np.mean(scores["prune"])) if scores["prune"] else None,
                "finished_score": float(np.mean(scores["finish"])) if scores["finish"] else None,
            }
        )
    return sorted(rows, key=lambda row: -row["prune"])


def _shown(name: str) -> str:
    """Return a client's group name as a table can hold it: visible, and not wider than the page."""
    name, _, owner = name.removeprefix(IMPLICIT_GROUP).partition("\0")
    text = name if name.isprintable() else repr(name)
    text = text if len(text) <= _NAME_LENGTH else f"{text[:40]}…{text[-19:]}"
    return f"{text} (caller {owner[:8]})" if owner else text


def _seconds(events: Events) -> np.ndarray:
    return np.array([event["time"] - events[0]["time"] for event in events])


def _time_axis(axes: Axes, end_s: float) -> None:
    axes.set_xlim(0, end_s or 1)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("seconds since the first event")


def _kv_use(events: Events, names: Sequence[str]) -> str:
    """Draw KV use as of each event, a line for each engine, with a mark for each prune."""
    seconds = _seconds(events)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for engine, name in enumerate(names):
            here = [i for i, event in enumerate(events) if event["engine"] == engine]
            use = [events[i]["kv_use"] for i in here]
            colour = SERIES[(engine + 1) % len(SERIES)]
            label = name if len(names) > 1 else None
            axes.plot(seconds[here], use, color=colour, linewidth=1.4, label=label)
            axes.fill_between(seconds[here], use, color=colour, alpha=0.12, linewidth=0)
        marks = [i for i, event in enumerate(events) if event["event"] == "prune"]
        if marks:
            height = np.full(len(marks), 1.08)
            axes.plot(
                seconds[marks],
                height,
                "v",
                color=MARK,
                markersize=5,
                linestyle="none",
                label=f"pruned: {len(marks):,}",
            )
        axes.set_ylim(0, 1.15)
        axes.set_yticks([0, 0.5, 1])
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_ylabel("KV cache in use")
        _time_axis(axes, float(seconds[-1]))
        legend_above(axes, empty="nothing pruned")

    return draw("events-kv", "KV cache in use over time, with a mark for each pruned trace", paint)


def _sides(events: Events) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """Return label, colour and events of the traces that finished and of those pruned."""
    kinds = (("finish", "finished", SERIES[1]), ("prune", "pruned", MARK))
    return [
        (label, colour, [event for event in events if event["event"] == kind])
        for kind, label, colour in kinds
    ]


def _scores(events: Events) -> str:
    """Draw how the trace scores of finished and pruned traces spread."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for label, colour, found in _sides(events):
            scores = [event["score"] for event in found if event["score"] is not None]
            if scores:
                words = f"{label}: {len(scores):,}"
                axes.hist(scores, bins=20, range=(0, 1), color=colour, alpha=0.45, label=words)
        axes.set_xlim(0, 1)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_xlabel("trace score at the end")
        axes.set_ylabel("traces")
        legend_above(axes, empty="no trace has a score")

    return draw("events-scores", "Trace scores of finished and of pruned traces", paint)


def _lengths(events: Events) -> str:
    """Draw each trace's score against its length at its end."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for label, colour, found in _sides(events):
            scored = [event for event in found if event["score"] is not None]
            axes.plot(
                [event["tokens"] for event in scored],
                [event["score"] for event in scored],
                "o",
                color=colour,
                markersize=4.5,
                alpha=0.6,
                markeredgewidth=0,
                label=label,
            )
        axes.set_ylim(0, 1)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axes.set_xlabel("length in tokens")
        axes.set_ylabel("trace score at the end")
        legend_above(axes)

    return draw("events-lengths", "Trace score against length, finished and pruned", paint)


def _freed(events: Events) -> str:
    """Draw the tokens of finished and of pruned traces, summed up over time."""
    seconds = _seconds(events)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for kind, label, colour in (
            ("finish", "of finished traces", SERIES[1]),
            ("prune", "of pruned traces", MARK),
        ):
            tokens = [_own_tokens(event) * (event["event"] == kind) for event in events]
            axes.step(seconds, np.cumsum(tokens), where="post", color=colour, label=label)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axes.set_ylabel("tokens")
        _time_axis(axes, float(seconds[-1]))
        legend_above(axes)

    return draw("events-freed", "Tokens of finished and pruned traces, summed up", paint)
