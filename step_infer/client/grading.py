"""Mathematical equality of answers, by math-verify in worker processes with a hard time limit.

math-verify can hang on hostile input and its own limit works only in a main thread, so it runs in
processes that are killed and replaced when they take too long.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait

from step_infer.errors import InputError

DEFAULT_TIMEOUT_S = 10.0
_WORKER = "step_infer.client.grading_worker"
_LONGEST_ANSWER = 2000
_NEVER = float("inf")
_LETTER = re.compile(r"[A-Z]")
_OPTION = re.compile(r"\(?([A-Z])([).:]+(\s|$)|$)")
"""An option of a multiple-choice question, with or without its text: "B", "(B)", "B) 5 m"."""


@dataclass
class _Worker:
    process: "subprocess.Popen[str]"
    ready: bool = False
    job: int | None = None
    deadline: float = _NEVER


class Grader:
    """Compares answers in worker processes; use it as a context manager.

    A comparison is True, False, or None where it could not be made: neither text the same nor
    parsable, or not done within the time limit.
    """

    def __init__(self, workers: int = 1, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Make a grader; its processes start with the first comparison that needs them.

        Args:
            workers: processes, at least 1.
            timeout_s: seconds for one comparison before its process is killed.

        Raises:
            InputError: fewer than one worker, or a time limit that is not above 0.
        """
        if workers < 1:
            raise InputError(f"Expected workers of at least 1, found {workers}.")
        if not timeout_s > 0:
            raise InputError(f"Expected timeout_s above 0, found {timeout_s}.")
        self._size = workers
        self._timeout_s = timeout_s
        self._workers: list[_Worker] = []
        self._known: dict[tuple[str, str], bool | None] = {}

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the worker processes."""
        for worker in self._workers:
            self._stop(worker)
        self._workers.clear()

    def equal(self, first: str, second: str) -> bool | None:
        """Compare two answers; see `equal_many`."""
        return self.equal_many([(first, second)])[0]

    def grade(self, answer: str | None, truth: str | None) -> bool | None:
        """Return whether an answer is right: None without an answer, a truth or a verdict."""
        return None if answer is None or truth is None else self.equal(truth, answer)

    def grade_many(self, pairs: Iterable[tuple[str | None, str | None]]) -> list[bool | None]:
        """Grade (answer, truth) pairs side by side."""
        pairs = list(pairs)
        whole = [(t, a) for a, t in pairs if a is not None and t is not None]
        verdicts = iter(self.equal_many(whole))
        return [None if a is None or t is None else next(verdicts) for a, t in pairs]

    def equal_many(self, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        """Compare pairs of answers side by side; every distinct pair is compared once."""
        jobs: list[tuple[str, str]] = []
        for pair in dict.fromkeys((_clean(a), _clean(b)) for a, b in pairs):
            if pair in self._known:
                continue
            verdict = _compare_text(*pair)
            if verdict is not None or max(map(len, pair)) > _LONGEST_ANSWER:
                self._known[pair] = verdict
            else:
                jobs.append(pair)
        self._run(jobs)
        return [self._known[(_clean(a), _clean(b))] for a, b in pairs]

    def _run(self, jobs: list[tuple[str, str]]) -> None:
        waiting = list(range(len(jobs)))[::-1]
        open_jobs = len(jobs)
        while open_jobs:
            while len(self._workers) < min(self._size, open_jobs):
                self._workers.append(self._start())
            for index, worker in enumerate(self._workers):
                if not worker.ready or worker.job is not None:
                    continue
                if worker.process.poll() is not None:  # killed while idle
                    self._workers[index] = self._replace(worker)
                elif waiting:
                    worker.job = waiting.pop()
                    worker.deadline = time.monotonic() + self._timeout_s
                    _send(worker, jobs[worker.job])
            limit = min(worker.deadline for worker in self._workers)
            done = wait(
                [worker.process.stdout for worker in self._workers],  # type: ignore[misc]
                None if limit == _NEVER else max(0.0, limit - time.monotonic()),
            )
            for index, worker in enumerate(self._workers):
                verdict = None
                if worker.process.stdout in done:
                    assert worker.process.stdout is not None
                    line = worker.process.stdout.readline()
                    if line:
                        verdict = json.loads(line)
                    elif worker.ready:  # the process died, on this pair or while idle
                        self._workers[index] = self._replace(worker)
                        if worker.job is None:
                            continue
                    else:
                        raise RuntimeError(
                            "A grading process ended at its start; is math-verify installed?"
                        )
                    if not worker.ready:
                        worker.ready = True
                        continue
                elif worker.deadline <= time.monotonic():
                    self._workers[index] = self._replace(worker)
                else:
                    continue
                assert worker.job is not None
                self._known[jobs[worker.job]] = verdict
                worker.job, worker.deadline = None, _NEVER
                open_jobs -= 1

    def _start(self) -> _Worker:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "step_infer.client.grading_worker",
                str(int(self._timeout_s) + 60),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return _Worker(process)

    def _stop(self, worker: _Worker) -> None:
        worker.process.kill()
        worker.process.communicate()

    def _replace(self, worker: _Worker) -> _Worker:
        self._stop(worker)
        return self._start()


def _send(worker: _Worker, pair: tuple[str, str]) -> None:
    assert worker.process.stdin is not None
    # A process that ended just now closes its output too, where the caller will see it.
    with suppress(BrokenPipeError):
        worker.process.stdin.write(json.dumps(pair) + "\n")
        worker.process.stdin.flush()


def _clean(answer: str) -> str:
    return " ".join(answer.split()).strip("$ ")


def _compare_text(first: str, second: str) -> bool | None:
    """Return the verdict where no parsing is needed: same text, whole numbers, option letters."""
    if first == second:
        return True
    if not first or not second:
        return False
    if _is_whole(first) and _is_whole(second):
        return int(first) == int(second)
    if _LETTER.fullmatch(first) or _LETTER.fullmatch(second):
        options = [_OPTION.match(text) for text in (first, second)]
        if options[0] and options[1]:
            return options[0][1] == options[1][1]
    return None


def _is_whole(text: str) -> bool:
    digits = text[1:] if text[:1] in "+-" else text
    return digits.isascii() and digits.isdigit() and len(digits) < 100
