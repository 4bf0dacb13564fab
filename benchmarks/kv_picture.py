"""Draw the KV cache in use over time, one panel a method, out of records of step-eval.

usage: python benchmarks/kv_picture.py RECORDS.jsonl --out PICTURE.svg [--question ID]

The records must have a series (`step-eval --kv-series-questions`). README's picture is made of
benchmarks/results/kv_math500_h100.jsonl, a question of the run in deciding_math500_h100.json there.
The picture is one file that loads nothing, light or dark as its reader's system is.
"""

import argparse
import re
from importlib.resources import files
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from step_eval.records import QuestionRecord
from step_eval.report.figures import MARK, SERIES, draw
from step_infer.storage.files import atomic_write

LABELS = {"sc": "SC", "step": "STEP"}
HEIGHT = 3.5
"""Inches."""


def picture(records: list[QuestionRecord]) -> str:
    """Return a standalone SVG of the records' KV use, on one time axis."""
    end_s = max(record.seconds for record in records) * 1.04

    def paint(figure: Figure) -> None:
        rows = figure.subplots(len(records), sharex=True, squeeze=False)[:, 0]
        for axes, record, colour in zip(rows, records, SERIES, strict=False):
            series = record.series
            assert series is not None
            time_S, use_S = np.array([0.0, *series.time_s]), np.array([0.0, *series.kv_use])
            axes.fill_between(time_S, use_S, color=colour, alpha=0.2, linewidth=0)
            axes.plot(time_S, use_S, color=colour, linewidth=1.6)
            jumps = np.diff(np.array([0, *series.preemptions])).clip(min=0)
            preempted_s = np.repeat(series.time_s, jumps)
            pruned_s = [trace.finished_s for trace in record.traces if trace.pruned]
            for times, marker in ((pruned_s, "v"), (preempted_s, "|")):
                heights = np.full(len(times), 1.11)
                axes.plot(times, heights, marker, color=MARK, markersize=5, linestyle="none")
            name = LABELS.get(record.method, record.method)
            done = f"{record.preemptions} preemptions" if record.preemptions else ""
            done = done or f"{len(pruned_s)} traces pruned"
            axes.set_title(f"{name}: {record.seconds:.1f} s, {done}", loc="left", fontsize=10)
            axes.axvline(record.seconds, color=colour, linewidth=1, linestyle=":")
            axes.set_ylim(0, 1.2)
            axes.set_yticks([0, 0.5, 1])
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            axes.set_ylabel("KV cache")
        rows[-1].set_xlim(0, end_s)
        rows[-1].set_xlabel("seconds since the question was asked")

    svg = draw("kv", "KV cache in use over time with SC and with STEP", paint, HEIGHT)
    style = files("step_eval.report").joinpath("style.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)[:2]
    own = (
        f"<style>svg {{{light}; font-family: system-ui, sans-serif}} "
        f"@media (prefers-color-scheme: dark) {{ svg {{{dark}}} }} "
        ".paper { fill: var(--card) }</style>"
        '<rect class="paper" width="100%" height="100%" rx="6"/>'
    )
    opening, rest = svg.split(">", 1)
    opening = opening.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" width="560" ')
    return f"{opening}>{own}{_small(rest)}\n"


def _small(svg: str) -> str:
    """Round the coordinates of a drawing to tenths of a point: hundreds of them are its size."""
    return re.sub(r"(?<![\w#-])(-?\d+\.\d)\d+", r"\1", svg)


def main() -> None:
    """Draw the picture that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path, help="lines of records, a method each")
    parser.add_argument("--question", help="its id; the first one by default")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found = map(QuestionRecord.from_json, options.records.read_text().splitlines())
    records = [record for record in found if record.series is not None]
    wanted = options.question or records[0].question_id
    with atomic_write(options.out, "w") as file:
        file.write(picture([r for r in records if r.question_id == wanted]))


if __name__ == "__main__":
    main()
