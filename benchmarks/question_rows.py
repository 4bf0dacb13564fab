"""A line for each question that a method answered: what is left of runs too large to be kept.

Rows of several runs, on other questions, lie in one file; what they say together is shown with
intervals, paired by question.

usage: python benchmarks/question_rows.py add ROWS.jsonl --setting "KV 16217" [--as NAME] DIR...
       python benchmarks/question_rows.py show ROWS.jsonl --baseline sc [--json FILE]

`add` takes directories of step-eval; a row that is there already is left as it is. `--as` gives
their method another name: an engine with other arguments is another method here.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from run_lines import read_runs

from step_eval.comparison import METRICS, difference, outcome, vote_name
from step_eval.records import QuestionRecord
from step_eval.report.words import change, number, number_range
from step_eval.results import read_run
from step_eval.statistics import bootstrap_weights, interval
from step_eval.votes import UNIFORM
from step_infer.cli.command import run as run_command
from step_infer.errors import InputError
from step_infer.storage.files import atomic_write

FIGURES = {
    **{name: sign for name, (_, sign) in METRICS.items()},
    **{"unweighted": 1, "coverage": 1, "distinct": 0, "finished": 0, "finished_per_second": 1},
}
"""What a row says, and whether more is better (1), worse (-1) or neither (0)."""
KEY = ("setting", "method", "repeat", "question_id")


def main() -> None:
    """Add rows, or show them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("add").add_argument
    add("rows", type=Path)
    add("directories", type=Path, nargs="+", metavar="DIR")
    add("--setting", required=True, help="what these runs share, such as the KV cache")
    add("--as", dest="name", help="name of the directories' one method")
    show = commands.add_parser("show").add_argument
    show("rows", type=Path)
    show("--baseline", default="sc")
    show("--json", type=Path, help="write all figures here")
    arguments = parser.parse_args()
    if arguments.command == "add":
        records = (
            record
            for directory in arguments.directories
            for found in read_run(directory)[1].values()
            for record in found
        )
        print(f"{add_rows(arguments.rows, arguments.setting, arguments.name, records)} rows added")
        return
    if not (rows := read_rows(arguments.rows)):
        raise InputError(f"Expected rows in {arguments.rows}, found none. Hint: add some first.")
    found = summary(rows, arguments.baseline)
    if arguments.json is not None:
        with atomic_write(arguments.json, "w") as file:
            file.write(json.dumps(found, indent=1) + "\n")
    for row in found:
        print(shown(row))


def row_of(record: QuestionRecord) -> dict[str, Any]:
    """Return what one method made of one question, by its own vote and by a plain one."""
    own = outcome(record, vote_name(record.method, "auto"))
    finished = [trace for trace in record.traces if trace.finished]
    return {
        "repeat": record.repeat,
        "question_id": record.question_id,
        "answer": own.answer,
        **{name: read(own) for name, (read, _) in METRICS.items()},
        "unweighted": float(outcome(record, UNIFORM).right),
        "coverage": float(any(trace.correct is True for trace in finished)),
        "distinct": len({trace.group for trace in finished if trace.group is not None}),
        "finished": len(finished),
        "finished_per_second": len(finished) / record.seconds if record.seconds > 0 else 0.0,
    }


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file; none where there is no file.

    Raises:
        InputError: it holds something else.
    """
    rows = read_runs(path)
    needed = {*KEY, *FIGURES}
    if not all(isinstance(row, dict) and needed <= row.keys() for row in rows):
        raise InputError(
            f"Expected rows of questions in {path}, found other lines. Hint: name another file."
        )
    return rows


def add_rows(path: Path, setting: str, name: str | None, records: Iterable[QuestionRecord]) -> int:
    """Add rows that are not there yet to a file; return how many."""
    rows = read_rows(path)
    there = {tuple(row[field] for field in KEY) for row in rows}
    before = len(rows)
    for record in records:
        row = {"setting": setting, "method": name or record.method, **row_of(record)}
        if (key := tuple(row[field] for field in KEY)) not in there:
            there.add(key)
            rows.append(row)
    rows.sort(key=lambda row: [str(row[field]) for field in KEY])
    with atomic_write(path, "w") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return len(rows) - before


def summary(rows: list[dict[str, Any]], baseline: str) -> list[dict[str, Any]]:
    """Return means of each setting and method, and differences to the baseline of the setting.

    Both are taken over the questions that the method and the baseline have, with 95 % intervals
    over questions.
    """
    grouped: dict[tuple[str, str], dict[tuple[int, str], dict[str, Any]]] = {}
    for row in rows:
        of_method = grouped.setdefault((row["setting"], row["method"]), {})
        of_method[row["repeat"], row["question_id"]] = row
    found = []
    for (setting, method), own in grouped.items():
        other = grouped.get((setting, baseline), own)
        keys = sorted(own.keys() & other.keys(), key=str)
        if not keys:
            continue
        ids = [question_id for _, question_id in keys]
        plain_P, drawn_DP = weights = bootstrap_weights(ids)
        means, differences = {}, {}
        for figure, sign in FIGURES.items():
            after_P = np.array([own[key][figure] for key in keys], dtype=float)
            before_P = np.array([other[key][figure] for key in keys], dtype=float)
            mean = interval(float(plain_P @ after_P), drawn_DP @ after_P, len(set(ids)))
            means[figure] = dataclasses.asdict(mean)
            if other is not own:
                gap = difference(figure, before_P, after_P, sign, weights, len(set(ids)))
                differences[figure] = dataclasses.asdict(gap)
        found.append(
            {
                "setting": setting,
                "method": method,
                "baseline": baseline,
                "questions": len(set(ids)),
                "means": means,
                "differences": differences,
            }
        )
    return found


def shown(row: dict[str, Any]) -> str:
    """Return a method's figures in a few lines of text."""
    lines = [f"{row['setting']}, {row['method']}, {row['questions']} questions"]
    for figure, mean in row["means"].items():
        ends = number_range(figure, mean["low"], mean["high"])
        line = f"  {figure:20}{number(figure, mean['value']):>10} ({ends})"
        if found := row["differences"].get(figure):
            value, ends = change(figure, found)
            line += f"; {value} ({ends}): {found['verdict']}"
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
