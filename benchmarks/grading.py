"""How long two answers take to compare; `group_answers.py` times all answers of a question.

Times each pair of a table of verdicts (JSON lines with `pair` or `equal`, as the tests' own).
Each answer is read once; math-verify has been started before, as in a run.

usage: python benchmarks/grading.py [--verdicts FILE.jsonl]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import combinations
from pathlib import Path

from step_infer.client.grading import Grader

TABLE = Path(__file__).parent.parent / "tests" / "step_infer" / "verdicts.jsonl"
WARM_UP = (r"\int_0^1 t\,dt", "1/2")
"""Starts math-verify."""


def main() -> None:
    """Print the median, the worst and what was worst."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
    worst, name = max(seconds)
    median = statistics.median(second for second, _ in seconds)
    times = f"median {1000 * median:.2f} ms, worst {1000 * worst:.1f} ms ({name})"
    print(f"{len(seconds)} pairs: {times}")


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
