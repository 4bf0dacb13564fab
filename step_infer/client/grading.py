"""Equality of answers: by their canonical forms, else by math-verify in worker processes.

Nearly all answers have a canonical form (`step_infer.client.canonical`), which is exact and takes
well under a millisecond. What it does not understand goes to math-verify. That can hang on hostile
input and its own limit works only in a main thread, so it runs in processes that are killed and
replaced when they take too long.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from multiprocessing.connection import wait

from step_infer.client import canonical
from step_infer.client.canonical import Canonical
from step_infer.errors import InputError

DEFAULT_TIMEOUT_S = 10.0
_WORKER = "step_infer.client.grading_worker"
_NEVER = float("inf")


@dataclass
class _Worker:
    process: "subprocess.Popen[str]"
    ready: bool = False
    job: int | None = None
    deadline: float = _NEVER


class Grader:
    """Compares answers in worker processes; use it as a context manager.

    A comparison is True, False, or None where it could not be made: neither text the same nor
    parsable, or not done within the time limit. It does not depend on the order of the two.
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
        self._forms: dict[str, Canonical | None] = {}

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
        cleaned = [_sorted(_clean(a), _clean(b)) for a, b in pairs]
        jobs: list[tuple[str, str]] = []
        for pair in dict.fromkeys(cleaned):
            if pair in self._known:
                continue
            known, verdict = self._compare(*pair)
            if known:
                self._known[pair] = verdict
            else:
                jobs.append(pair)
        self._run(jobs)
        return [self._known[pair] for pair in cleaned]

    def same(self, answers: Iterable[str | None]) -> Callable[[str, str], bool]:
        """Compare all of some answers with each other, side by side.

        Returns:
            Whether two of them are known to be equal, for `vote`.
        """
        forms = sorted({answer for answer in answers if answer is not None})
        pairs = list(combinations(forms, 2))
        equal = {
            pair for pair, verdict in zip(pairs, self.equal_many(pairs), strict=True) if verdict
        }
        return lambda first, second: first == second or _sorted(first, second) in equal

    def _compare(self, first: str, second: str) -> tuple[bool, bool | None]:
        """Return whether a verdict is to be had without math-verify, and the verdict."""
        if first == second:
            return True, True
        if not first or not second:
            return True, False
        if max(len(first), len(second)) > canonical.LONGEST_ANSWER:
            return True, None
        forms = self._form(first), self._form(second)
        if forms[0] is not None and forms[1] is not None:
            verdict = canonical.equal(forms[0], forms[1])
            if verdict is not None:
                return True, verdict
        for text, form in zip((first, second), forms, strict=True):
            unread = form is None and not canonical.math_verify_reads(text)
            if unread or (form is not None and form.heavy) or canonical.is_explosive(text):
                return True, None
        return False, None

    def _form(self, text: str) -> Canonical | None:
        if text not in self._forms:
            self._forms[text] = canonical.canonical(text)
        return self._forms[text]

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
                _WORKER,
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


@lru_cache(maxsize=10_000)
def _clean(answer: str) -> str:
    return " ".join(canonical.mend_escapes(answer).split())


def _sorted(first: str, second: str) -> tuple[str, str]:
    return (first, second) if first <= second else (second, first)
