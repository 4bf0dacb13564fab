"""Finds and compares the answers of a server's voted calls, beside its event loop.

A client chooses the answer kind, its settings and, by what it asks, the answers. So whatever
depends on these goes with its call, worker processes are few and at a call's service for a limited
time, and all other work on answers is done in one thread.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from step_infer.client.answers import Vote, vote
from step_infer.client.grading import DEFAULT_TIMEOUT_S, Grader
from step_infer.client.kinds import AnswerOptions, Open, find_kind
from step_infer.client.worker_pool import JobList, WorkerPool
from step_infer.errors import InputError

logger = logging.getLogger(__name__)

_PROCESSES = 2
"""Of one program: while one is at a long job, the other does short ones."""
_MATH_TIMEOUT_S = 3.0
"""For one comparison by math-verify; nearly all take milliseconds."""
_MATH_LIMIT_S = 10.0
"""For all of one call's together."""
_COMPARED_S = 3.0
"""For all of one call's that need no process: nearly all take microseconds."""
_LAST_S = 30.0
"""How long the last answers of a call may be compared, whatever other calls have to compare."""
_POLL_S = 0.02

T = TypeVar("T")


class CallGrader(Grader):
    """The grader of one call; only `VotedGrading.do`, and what awaits it, may call its methods."""

    def __init__(self, answers: AnswerOptions, jobs: JobList | None) -> None:
        super().__init__(answers=answers, jobs=jobs)
        self.turn = asyncio.Lock()
        self._numbers: dict[Hashable, int] = {}
        self._bindings: dict[str, int] = {}
        self._known: dict[tuple[str, str], bool | None] = {}
        self._compared_s = 0.0
        self._left_out = 0

    @property
    def uncompared(self) -> int:
        """Comparisons that the vote which was held last went without, for want of time."""
        return self.given_up + self._left_out

    def hold(self, answers: Sequence[str | None], weights: Sequence[float]) -> Vote:
        """Hold the vote of some answers, of which no more are compared by worker processes."""
        self.give_up()
        self._left_out = 0
        return vote(answers, weights, self.same(answers))

    def binding(self, answer: str) -> Hashable:
        """Return a key of an answer, a small one: that of a long list takes long to be hashed."""
        if answer not in self._bindings:
            number = self._numbers.setdefault(super().binding(answer), len(self._numbers))
            self._bindings[answer] = number
        return self._bindings[answer]

    def _begin(self, pair: tuple[str, str], in_vote: bool) -> bool | None | Open:
        if pair in self._known:
            return self._known[pair]
        if self._compared_s >= _COMPARED_S:
            self._left_out += 1
            return None
        began_s = time.thread_time()
        verdict = super()._begin(pair, in_vote)
        self._compared_s += time.thread_time() - began_s
        if not isinstance(verdict, Open):
            self._known[pair] = verdict
        return verdict

    def poll(self) -> None:
        """Take in what has come; where no process can be started, do without."""
        try:
            super().poll()
        except (InputError, RuntimeError) as error:
            logger.error("Some answers stay uncompared. %s", error)
            self.give_up()


class VotedGrading:
    """What the graders of all voted calls share: a thread, and worker processes."""

    def __init__(self, own: AnswerOptions) -> None:
        """Start what an operator's answer kind needs, where that is code.

        Raises:
            InputError: it cannot be loaded.
        """
        self._thread = ThreadPoolExecutor(1, "step-grading")
        self._pools: dict[Hashable, WorkerPool] = {}
        if own.runs_code:
            jobs = self._jobs(own)
            assert jobs is not None
            jobs.pool.await_start()

    def grader(self, answers: AnswerOptions) -> CallGrader:
        """Return a new call's grader."""
        return CallGrader(answers, self._jobs(answers))

    async def do(self, grader: CallGrader, work: Callable[..., T], *arguments: object) -> T:
        """Do some work with a grader in the thread, which does one piece for each call in turn."""
        async with grader.turn:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, work, *arguments)

    async def extract(
        self,
        grader: CallGrader,
        text: str,
        think_end: str | None,
        late: Callable[[], bool] = lambda: False,
    ) -> str | None:
        """Return the answer of a whole response, as `Grader.extract` does; None once it is late."""

        def find() -> str | None | Open:
            grader.poll()
            return grader.begin_extract(text, think_end)

        while isinstance(found := await self.do(grader, find), Open):
            if late():
                return None
            await asyncio.sleep(_POLL_S)
        return found

    async def vote(
        self, grader: CallGrader, answers: Sequence[str | None], weights: Sequence[float]
    ) -> Vote:
        """Wait until all answers of a call have been compared, within limits, and hold its vote."""
        given = {answer for answer in answers if answer is not None}

        def compares() -> bool:
            grader.poll()
            return bool(grader.pending(given))

        deadline = time.monotonic() + _LAST_S
        while await self.do(grader, compares) and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)
        return await self.do(grader, grader.hold, answers, weights)

    def end(self, grader: CallGrader) -> None:
        """Forget what a call has not got done."""
        self._thread.submit(grader.close)

    def _jobs(self, answers: AnswerOptions) -> JobList | None:
        program = find_kind(answers).program
        if program is None:
            return None
        own = answers.runs_code  # what an operator runs takes the time that it takes
        pool = self._pools.setdefault(
            (program.module, program.arguments),
            WorkerPool(program, _PROCESSES, DEFAULT_TIMEOUT_S if own else _MATH_TIMEOUT_S),
        )
        return pool.join() if own else pool.join(_MATH_LIMIT_S)
