"""How long answers take to grade and to group.

Times each pair of a table of verdicts (JSON lines with `pair` or `equal`, as the tests' own), and
each question's groups in a file of answers (JSON lines with `answers`, one a trace, and `truth`).
What was compared once is not compared again; math-verify has been started before, as in a run.

usage: python benchmarks/grading.py [--answers FILE.jsonl] [--verdicts FILE.jsonl]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import combinations
from pathlib import Path

from step_infer.client.answers import vote
from step_infer.client.grading import Grader

TABLE = Path(__file__).parent.parent / "tests" / "step_infer" / "verdicts.jsonl"
WARM_UP = (r"\int_0^1 t\,dt", "1/2")
"""Starts math-verify."""


def main() -> None:
    """Print the median, the worst and what was worst."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", type=Path, help="answers by question")
    parser.add_argument("--verdicts", type=Path, default=TABLE)
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.verdicts.open()]
    pairs = [tuple(row["pair"]) for row in rows if "pair" in row]
    pairs += [pair for row in rows for pair in combinations(row.get("equal", []), 2)]
    with Grader() as grader:
        grader.equal(*WARM_UP)
        seconds = []
        for pair in pairs:
            seconds.append((_timed(partial(grader.equal, *pair)), " | ".join(pair)))
        _print("pairs", seconds)
        if options.answers is None:
            return
        seconds = []
        for line in options.answers.open():
            row = json.loads(line)
            seconds.append((_timed(partial(_group, row["answers"], grader)), str(row["truth"])))
        _print("questions", seconds)


def _group(answers: list[str | None], grader: Grader) -> None:
    vote(answers, equal=grader.same(answers))


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _print(what: str, seconds: list[tuple[float, str]]) -> None:
    worst, name = max(seconds)
    median = statistics.median(second for second, _ in seconds)
    times = f"median {1000 * median:.2f} ms, worst {1000 * worst:.1f} ms ({name})"
    print(f"{len(seconds)} {what}: {times}")


if __name__ == "__main__":
    main()
