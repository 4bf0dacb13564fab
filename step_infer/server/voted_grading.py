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
_LAST_S = 30.0
"""How long the last answers of a call may be compared, whatever other calls have to compare."""
_POLL_S = 0.02

T = TypeVar("T")


class CallGrader(Grader):
    """The grader of one call."""

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
        """Return a new call's grader; only `do` and what awaits it may call its methods."""
        return CallGrader(answers=answers, jobs=self._jobs(answers))

    async def do(self, work: Callable[..., T], *arguments: object) -> T:
        """Do some work on answers, after all that came before it."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def extract(self, grader: CallGrader, text: str, think_end: str | None) -> str | None:
        """Return the answer of a whole response, as `Grader.extract` does."""

        def find() -> str | None | Open:
            grader.poll()
            return grader.begin_extract(text, think_end)

        while isinstance(found := await self.do(find), Open):
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

        def hold() -> Vote:
            grader.give_up()  # from here on nothing waits for a process
            return vote(answers, weights, grader.same(answers))

        deadline = time.monotonic() + _LAST_S
        while await self.do(compares) and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)
        return await self.do(hold)

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
