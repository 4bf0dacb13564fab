"""What answers responses hold and which of them are equal, by an answer kind.

Most is said at once. What is left to another library or to a user's own functions, which can hang
on hostile input, is asked in worker processes that are killed and replaced when they take too long.
"""

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from itertools import combinations

from step_infer.client.kinds import OPEN, AnswerOptions, Open, final_part, find_kind
from step_infer.client.worker_pool import JobList, WorkerPool
from step_infer.errors import InputError
from step_infer.scorer.think_end import THINK_END

DEFAULT_TIMEOUT_S = 10.0
_Pair = tuple[str, str]
_Key = frozenset[Hashable]
"""The bindings of a pair: what a worker says of one holds for all pairs that say the same."""


class Grader:
    """Finds answers and compares them, by one answer kind; use it as a context manager.

    A comparison is True, False, or None where it could not be made: neither text the same nor
    read, or not done within the time limit. It does not depend on the order of the two.

    `extract`, `equal`, `equal_many`, `grade`, `grade_many` and `same` wait for what they return. A
    caller that must not wait says with `submit` what it will want to know, calls `poll` now and
    then, and asks `pending` what is still open; of what is not, the others answer at once, with the
    same verdicts. It is not for several threads.
    """

    def __init__(
        self,
        workers: int = 1,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        answers: AnswerOptions | None = None,
        jobs: JobList | None = None,
    ) -> None:
        """Make a grader; its processes start with the first question that needs them.

        Args:
            workers: processes at most, at least 1.
            timeout_s: seconds for one comparison, or one call of a user's function, before its
                process is killed.
            answers: the answer kind; None is math.
            jobs: of a pool that other graders of this kind use too; None: processes of its own.

        Raises:
            InputError: fewer than one worker, or a time limit that is not above 0.
        """
        if workers < 1:
            raise InputError(f"Expected workers of at least 1, found {workers}.")
        if not timeout_s > 0:
            raise InputError(f"Expected timeout_s above 0, found {timeout_s}.")
        answers = answers or AnswerOptions()
        self._kind = find_kind(answers)
        self._is_own = answers.runs_code
        program = self._kind.program
        self._owns_pool = jobs is None
        if jobs is None and program is not None:
            jobs = WorkerPool(program, workers, timeout_s).join()
        self._jobs = jobs
        self._pool = None if jobs is None else jobs.pool

    def __enter__(self) -> "Grader":
        """Return this; a user's own function is loaded first.

        Raises:
            InputError: it cannot be.
        """
        if self._pool is not None and self._is_own:
            self._pool.await_start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the worker processes that are its own; what was open stays without a verdict."""
        if self._jobs is not None:
            self._jobs.close()
        if self._pool is not None and self._owns_pool:
            self._pool.close()

    def warm_up(self) -> None:
        """Start the worker processes now, if the kind has any, and do not wait for them.

        They take seconds to load math-verify, which the first comparison need not wait for then.
        """
        if self._pool is not None:
            self._pool.warm_up()

    def extract(self, text: str, think_end: str | None = THINK_END) -> str | None:
        """Return the answer of a whole response; None where it has none of this kind.

        Args:
            text: the response.
            think_end: text that ends the thinking, after which alone an answer counts; None where
                nothing does.

        Raises:
            InputError: a user's own function cannot be loaded.
        """
        while isinstance(found := self.begin_extract(text, think_end), Open):
            assert self._jobs is not None
            self._jobs.wait([_extraction(text, think_end)])
        return found

    def begin_extract(self, text: str, think_end: str | None = THINK_END) -> str | None | Open:
        """Return the same as `extract`, or `OPEN` where a user's function is at it; never wait.

        Ask again after a `poll`.
        """
        found = self._kind.extract(text, think_end)
        if not isinstance(found, Open):
            return found
        assert self._jobs is not None
        key = _extraction(text, think_end)
        self._jobs.begin(key, key[1:])
        if key not in self._jobs.done:
            return OPEN
        answer: str | None = self._jobs.done.pop(key)
        return answer

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
        cleaned = [self._pair(*pair) for pair in pairs]
        verdicts: dict[_Pair, bool | None] = {}
        awaited: dict[_Pair, _Key] = {}
        for pair in dict.fromkeys(cleaned):
            verdict = self._begin(pair, in_vote)
            if isinstance(verdict, Open):
                awaited[pair] = self._key(pair)
            else:
                verdicts[pair] = verdict
        if self._jobs is not None:
            self._jobs.wait(awaited.values())
            verdicts |= {pair: self._jobs.done[key] for pair, key in awaited.items()}
        return [verdicts[pair] for pair in cleaned]

    def same(self, answers: Iterable[str | None]) -> Callable[[str, str], bool]:
        """Compare all of some answers with each other, side by side.

        A mathematical answer without a canonical form is the same as another only where their texts
        are: dozens of them would take math-verify minutes, for sums without end that nobody has
        worked out.

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
        return self._kind.binding(self._kind.clean(answer))

    def submit(self, answer: str, others: Iterable[str], in_vote: bool = False) -> None:
        """Begin to compare an answer with others, where that needs a worker process; never wait.

        A process that is still to be started costs some milliseconds; see `warm_up`.

        Args:
            answer: the answer.
            others: the others.
            in_vote: only as far as `same` compares them.
        """
        for other in others:
            self._begin(self._pair(answer, other), in_vote)
        if self._pool is not None:
            self._pool.hand_out()

    def poll(self) -> None:
        """Take in the verdicts that have come, and end what is over the time limit; never wait.

        Raises:
            RuntimeError: a worker process ended before it had loaded math-verify.
            InputError: a user's own function cannot be loaded.
        """
        if self._pool is not None:
            self._pool.poll()

    def give_up(self) -> None:
        """Leave what is open, and what would be from now on, without a verdict."""
        if self._jobs is not None:
            self._jobs.give_up()

    @property
    def given_up(self) -> int:
        """Comparisons that were given up."""
        return 0 if self._jobs is None else self._jobs.given_up

    def pending(self, answers: Collection[str]) -> set[str]:
        """Return which of some answers have an open comparison with another of them.

        Those that are bound to such an answer (`binding`) are among them.
        """
        if self._jobs is None or not self._jobs.open:
            return set()
        bindings = {self.binding(answer) for answer in answers}
        found: set[Hashable] = set()
        for key in self._jobs.open:
            if isinstance(key, frozenset) and key <= bindings:
                found |= key
        return {answer for answer in answers if self.binding(answer) in found}

    def _begin(self, pair: _Pair, in_vote: bool) -> bool | None | Open:
        """Return the verdict on a pair; where only a worker has one, see that it is asked."""
        verdict = self._kind.compare(*pair, in_vote)
        if not isinstance(verdict, Open):
            return verdict
        assert self._jobs is not None
        key = self._key(pair)
        self._jobs.begin(key, pair)
        if key not in self._jobs.done:
            return OPEN
        known: bool | None = self._jobs.done[key]
        return known

    def _pair(self, first: str, second: str) -> _Pair:
        first, second = self._kind.clean(first), self._kind.clean(second)
        return (first, second) if first <= second else (second, first)

    def _key(self, pair: _Pair) -> _Key:
        return frozenset(map(self.binding, pair))


def _extraction(text: str, think_end: str | None) -> tuple[str, str]:
    """Return the key of the job of finding a response's answer, which ends with the job."""
    return "extract", final_part(text, think_end)
