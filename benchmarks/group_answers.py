"""How long it takes to group the answers of a question, at once and as its traces end.

Reads recorded answers: JSON lines, a question each, with `answers`, one a trace in the order in
which they ended, null where a trace gave none. Timed are, for each question:

- at once: from all answers to the groups of the vote, as after the last trace;
- as traces end: for each answer, handing it to the grader, polling, asking what is open, and
  grouping what is settled, as a caller does that must not wait; then from the last answer to the
  groups of all. Traces end without a pause here, so no time hides what math-verify takes.

Every pass has a process of its own, so that nothing is known beforehand but math-verify, which has
been started, as it is in a run; its start is timed alone. Of each time the least of all passes
counts, as other work may share the machine. Prints figures only, no answer.

usage: python benchmarks/group_answers.py ANSWERS.jsonl [--out FIGURES.json]
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from step_infer.client.answers import vote
from step_infer.client.grading import Grader
from step_infer.errors import InputError
from step_infer.storage.files import write_json
from step_infer.storage.run_directory import package_versions

PASSES = 3
START = (r"\int_0^1 t\,dt", "1/2")
"""What needs math-verify."""

Answers = Sequence[str | None]
Seconds = dict[str, float]
"""Of one question, by what was timed."""


def main() -> None:
    """Print the median and the worst of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("answers", type=Path, help="recorded answers, JSON lines")
    parser.add_argument("--out", type=Path, help="where to write the figures, JSON")
    options = parser.parse_args()
    try:
        questions = read_answers(options.answers)
    except InputError as error:
        sys.exit(f"error: {error}")
    kinds = (at_once, as_traces_end)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
        coming = [pool.submit(one_pass, questions, kind) for kind in kinds * PASSES]
        passes = [one.result() for one in coming]
    found = {"command": f"python benchmarks/{Path(__file__).name} {options.answers.name}"}
    found |= figures(questions, passes)
    found |= {"passes": PASSES, "cpus": os.cpu_count(), "versions": package_versions()}
    print(json.dumps(found, indent=1))
    if options.out is not None:
        write_json(options.out, found)


def read_answers(path: Path) -> list[Answers]:
    """Read each question's answers.

    Raises:
        InputError: a line holds none.
    """
    questions: list[Answers] = []
    for number, line in enumerate(path.open(), 1):
        try:
            answers = json.loads(line)["answers"]
            if not all(answer is None or isinstance(answer, str) for answer in answers):
                raise TypeError("an answer that is neither text nor null")
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f'Expected {{"answers": [...]}} in {path}, line {number}, found: {error!r}. '
                "Hint: one text or null a trace."
            ) from error
        questions.append(answers)
    return questions


def one_pass(
    questions: Sequence[Answers], time_question: Callable[[Answers, Grader], Seconds]
) -> list[Seconds]:
    """Return the seconds of every question, with those of math-verify's start."""
    with Grader() as grader:
        begin = time.perf_counter()
        grader.equal(*START)
        start = {"math_verify_start": time.perf_counter() - begin}
        return [time_question(answers, grader) | start for answers in questions]


def at_once(answers: Answers, grader: Grader) -> Seconds:
    """Return the seconds from all answers to the groups of the vote."""
    begin = time.perf_counter()
    vote(answers, equal=grader.same(answers))
    return {"at_once": time.perf_counter() - begin}


def as_traces_end(answers: Answers, grader: Grader) -> Seconds:
    """Return the seconds that a caller is held, while traces end and after the last."""
    ended: list[str] = []
    held = []
    for answer in answers:
        begin = time.perf_counter()
        if answer is not None:
            grader.submit(answer, set(ended), in_vote=True)
            ended.append(answer)
        grader.poll()
        open_forms = grader.pending(set(ended))
        settled = [other for other in ended if other not in open_forms]
        vote(settled, equal=grader.same(settled))
        held.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    vote(answers, equal=grader.same(answers))
    return {
        "slowest_trace": max(held, default=0.0),
        "all_traces": sum(held),
        "after_the_last": time.perf_counter() - begin,
    }


def figures(questions: Sequence[Answers], passes: Sequence[Sequence[Seconds]]) -> dict[str, Any]:
    """Return the median and the worst question of each time, in milliseconds."""
    forms = [len({answer for answer in answers if answer is not None}) for answers in questions]
    found: dict[str, Any] = {
        "questions": len(questions),
        "answers": sum(map(len, questions)),
        "different_texts_a_question": {"median": statistics.median(forms), "most": max(forms)},
    }
    for name in dict.fromkeys(name for one in passes for name in one[0]):
        least = [min(row) for row in zip(*_columns(passes, name), strict=True)]
        found[name] = {
            "median_ms": round(1000 * statistics.median(least), 2),
            "worst_ms": round(1000 * max(least), 2),
        }
    return found


def _columns(passes: Sequence[Sequence[Seconds]], name: str) -> list[list[float]]:
    return [[row[name] for row in one] for one in passes if name in one[0]]


if __name__ == "__main__":
    main()
