"""Equality of answers: by their canonical forms, else by math-verify in worker processes.

Nearly all answers have a canonical form (`step_infer.client.canonical`), which is exact and takes
well under a millisecond. What it does not understand goes to math-verify. That can hang on hostile
input and its own limit works only in a main thread, so it runs in processes that are killed and
replaced when they take too long.
"""

import json
import os
import selectors
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from itertools import combinations

from step_infer.client import canonical
from step_infer.client.canonical import Canonical
from step_infer.errors import InputError

DEFAULT_TIMEOUT_S = 10.0
_WORKER = "step_infer.client.grading_worker"
_NEVER = float("inf")
_Pair = tuple[str, str]
_Key = frozenset[Hashable]
"""The bindings of a pair: what math-verify says of one holds for all pairs that say the same."""


class _Open(Enum):
    """What stands in the place of a verdict that only math-verify can give."""

    OPEN = 0


@dataclass(eq=False)
class _Worker:
    process: "subprocess.Popen[bytes]"
    ready: bool = False
    job: _Key | None = None
    deadline: float = _NEVER
    unsent: bytes = b""
    received: bytes = b""
    """The beginning of a line."""


class Grader:
    """Compares answers in worker processes; use it as a context manager.

    A comparison is True, False, or None where it could not be made: neither text the same nor
    parsable, or not done within the time limit. It does not depend on the order of the two.

    `equal`, `equal_many`, `grade`, `grade_many` and `same` wait for their verdicts. A caller that
    must not wait says with `submit` what it will want to know, calls `poll` now and then, and asks
    `pending` what is still open; of what is not, the others answer at once, with the same verdicts.
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
        self._killed: list[subprocess.Popen[bytes]] = []
        self._known: dict[_Key, bool | None] = {}
        self._open: dict[_Key, _Pair] = {}
        self._waiting: deque[_Key] = deque()

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the worker processes; what was open stays without a verdict."""
        for worker in self._workers:
            self._stop(worker)
        self._workers.clear()
        self._waiting.clear()
        self._open.clear()
        for process in self._killed:
            process.wait()
        self._killed.clear()

    def warm_up(self) -> None:
        """Start the worker processes now, without waiting until they are ready.

        They take seconds to load math-verify, which the first comparison need not wait for then.
        """
        while len(self._workers) < self._size:
            self._workers.append(self._start())

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
        return self._verdicts(pairs, in_vote=False)

    def _verdicts(self, pairs: Sequence[tuple[str, str]], in_vote: bool) -> list[bool | None]:
        cleaned = [_pair(*pair) for pair in pairs]
        verdicts: dict[_Pair, bool | None] = {}
        awaited: dict[_Pair, _Key] = {}
        for pair in dict.fromkeys(cleaned):
            verdict = self._begin(pair, in_vote)
            if isinstance(verdict, _Open):
                awaited[pair] = self._key(pair)
            else:
                verdicts[pair] = verdict
        if awaited:  # first of all that waits
            first = set(awaited.values())
            self._waiting = deque(sorted(self._waiting, key=lambda key: key not in first))
        self._hand_out()
        while not self._open.keys().isdisjoint(awaited.values()):
            self._wait()
            self.poll()
        verdicts |= {pair: self._known[key] for pair, key in awaited.items()}
        return [verdicts[pair] for pair in cleaned]

    def same(self, answers: Iterable[str | None]) -> Callable[[str, str], bool]:
        """Compare all of some answers with each other, side by side.

        An answer without a canonical form is the same as another only where their texts are: dozens
        of them would take math-verify minutes, for sums without end that nobody has worked out.

        Returns:
            Whether two of them are known to be equal, for `vote`. Answers of one binding are equal
            to the same ones.
        """
        shortest: dict[Hashable, str] = {}
        of: dict[str, str] = {}
        given = {answer for answer in answers if answer is not None}
        for answer in sorted(given, key=lambda answer: (len(answer), answer)):
            of[answer] = shortest.setdefault(self.binding(answer), answer)
        pairs = list(combinations(shortest.values(), 2))
        verdicts = zip(pairs, self._verdicts(pairs, in_vote=True), strict=True)
        equal = {frozenset(pair) for pair, verdict in verdicts if verdict}
        return lambda first, second: (
            of[first] == of[second] or frozenset((of[first], of[second])) in equal
        )

    def binding(self, answer: str) -> Hashable:
        """Return a key of an answer: those of equal keys are in one group of any vote.

        That holds whatever other answers there are, where `same` of them all says what is equal.
        Answers of different keys may be equal too, but a group of them can be torn: that of "5" and
        "5 cm", once there is "5 m".
        """
        return _read(_clean(answer))[1]

    def submit(self, answer: str, others: Iterable[str], in_vote: bool = False) -> None:
        """Begin to compare an answer with others, where that needs a worker process; never wait.

        A process that is still to be started costs some milliseconds; see `warm_up`.

        Args:
            answer: the answer.
            others: the others.
            in_vote: only as far as `same` compares them.
        """
        for other in others:
            self._begin(_pair(answer, other), in_vote)
        self._hand_out()

    def poll(self) -> None:
        """Take in the verdicts that have come, and end what is over the time limit; never wait.

        Raises:
            RuntimeError: a worker process ended before it had loaded math-verify.
        """
        self._killed = [process for process in self._killed if process.poll() is None]
        for worker in list(self._workers):
            self._receive(worker)
            if worker.deadline <= time.monotonic():
                self._settle(worker, None)
                self._replace(worker)
        self._hand_out()

    def pending(self, answers: Collection[str]) -> set[str]:
        """Return which of some answers have an open comparison with another of them.

        Those that are bound to such an answer (`binding`) are among them.
        """
        if not self._open:
            return set()
        bindings = {self.binding(answer) for answer in answers}
        found: set[Hashable] = set()
        for key in self._open:
            if key <= bindings:
                found |= key
        return {answer for answer in answers if self.binding(answer) in found}

    def _begin(self, pair: _Pair, in_vote: bool) -> bool | None | _Open:
        """Return the verdict on a pair; where only math-verify has one, see that it is asked."""
        if in_vote and pair[0] != pair[1] and any(_read(answer)[0] is None for answer in pair):
            return False
        verdict = self._compare(*pair)
        if not isinstance(verdict, _Open):
            return verdict
        key = self._key(pair)
        if key in self._known:
            return self._known[key]
        if key not in self._open:
            self._open[key] = pair
            self._waiting.append(key)
        return verdict

    def _key(self, pair: _Pair) -> _Key:
        return frozenset(map(self.binding, pair))

    def _compare(self, first: str, second: str) -> bool | None | _Open:
        """Return the verdict on a pair as far as it is to be had without math-verify."""
        if first == second:
            return True
        if not first or not second:
            return False
        if max(len(first), len(second)) > canonical.LONGEST_ANSWER:
            return None
        forms = _read(first)[0], _read(second)[0]
        if forms[0] is not None and forms[1] is not None:
            verdict = canonical.equal(forms[0], forms[1])
            if verdict is not None:
                return verdict
        for text, form in zip((first, second), forms, strict=True):
            unread = form is None and not canonical.math_verify_reads(text)
            if unread or (form is not None and form.heavy) or canonical.is_explosive(text):
                return None
        return _Open.OPEN

    def _hand_out(self) -> None:
        """Give what waits to processes that are free."""
        while len(self._workers) < min(self._size, len(self._open)):
            self._workers.append(self._start())
        for worker in list(self._workers):
            if not worker.ready or worker.job is not None or not self._waiting:
                continue
            if worker.process.poll() is not None:  # killed while idle
                self._replace(worker)
                continue
            worker.job = self._waiting.popleft()
            worker.deadline = time.monotonic() + self._timeout_s
            worker.unsent = json.dumps(self._open[worker.job]).encode() + b"\n"
            _send(worker)

    def _receive(self, worker: _Worker) -> None:
        """Take in what a process has written."""
        _send(worker)
        assert worker.process.stdout is not None
        try:
            read = os.read(worker.process.stdout.fileno(), 4096)
        except BlockingIOError:
            return
        if not read:
            if not worker.ready:
                raise RuntimeError(
                    "A grading process ended at its start; is math-verify installed?"
                )
            # It died, at work or while idle.
            self._settle(worker, None)
            self._replace(worker)
            return
        *lines, worker.received = (worker.received + read).split(b"\n")
        for line in lines:
            if worker.ready:
                self._settle(worker, json.loads(line))
            worker.ready = True

    def _settle(self, worker: _Worker, verdict: bool | None) -> None:
        if worker.job is not None:
            self._known[worker.job] = verdict
            del self._open[worker.job]
        worker.job, worker.deadline, worker.unsent = None, _NEVER, b""

    def _wait(self) -> None:
        """Wait until a process writes or has room to read, or is over the time limit."""
        limit = min(worker.deadline for worker in self._workers)
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                assert worker.process.stdout is not None
                selector.register(worker.process.stdout, selectors.EVENT_READ)
                if worker.unsent:
                    assert worker.process.stdin is not None
                    selector.register(worker.process.stdin, selectors.EVENT_WRITE)
            selector.select(None if limit == _NEVER else max(0.0, limit - time.monotonic()))

    def _start(self) -> _Worker:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                _WORKER,
                str(int(self._timeout_s) + 60),
            ],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        return _Worker(process)

    def _stop(self, worker: _Worker) -> None:
        """Kill a process; `poll` sees when it is gone."""
        worker.process.kill()
        for pipe in (worker.process.stdin, worker.process.stdout):
            assert pipe is not None
            pipe.close()
        self._killed.append(worker.process)

    def _replace(self, worker: _Worker) -> None:
        self._stop(worker)
        self._workers[self._workers.index(worker)] = self._start()


def _send(worker: _Worker) -> None:
    """Write what a process still has to be sent, as far as there is room."""
    if worker.unsent:
        assert worker.process.stdin is not None
        # A process that ended just now closes its output too, where the caller will see it.
        with suppress(BlockingIOError, BrokenPipeError):
            worker.unsent = worker.unsent[os.write(worker.process.stdin.fileno(), worker.unsent) :]


@lru_cache(maxsize=10_000)
def _clean(answer: str) -> str:
    return " ".join(canonical.mend_escapes(answer).split())


@lru_cache(maxsize=10_000)
def _read(answer: str) -> tuple[Canonical | None, Hashable]:
    """Return the canonical form of an answer, where it has one, and its binding."""
    form = canonical.canonical(answer)
    return form, (answer if form is None else canonical.identity(form))


def _pair(first: str, second: str) -> _Pair:
    first, second = _clean(first), _clean(second)
    return (first, second) if first <= second else (second, first)
