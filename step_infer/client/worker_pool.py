"""Worker processes that are killed and replaced when they take too long: both ends of the pipes.

A worker is a process of its own rather than a fork of the caller, so that it shares neither threads
nor an accelerator with it. It writes a JSON line, "ready" or why it cannot start, then one for each
line that it reads.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

_NEVER = float("inf")


@dataclass(frozen=True)
class WorkerProgram:
    """What the processes of a pool run."""

    module: str
    """Run with `python -m`."""
    arguments: tuple[str, ...] = ()
    """What it is told."""
    refused: Callable[[str], Exception] = RuntimeError
    """Makes the exception that says that it cannot start, from a reason."""


@dataclass(eq=False)
class Worker:
    """One process."""

    process: "subprocess.Popen[bytes]"
    ready: bool = False
    job: Hashable = None
    jobs: "JobList | None" = None
    """Whose job it is at."""
    begun: float = 0.0
    deadline: float = _NEVER
    unsent: bytes = b""
    received: bytes = b""
    """The beginning of a line."""


class WorkerPool:
    """Has jobs done in worker processes, each within a time limit.

    Nothing but `JobList.wait` and `await_start` waits: `poll` takes in what is done and hands out
    what is to do. It is not for several threads.
    """

    def __init__(self, program: WorkerProgram, size: int, timeout_s: float) -> None:
        """Make a pool without processes.

        Args:
            program: what they run.
            size: processes at most.
            timeout_s: seconds for one job before its process is killed.
        """
        self._program, self._size, self._timeout_s = program, size, timeout_s
        self.workers: list[Worker] = []
        self._killed: list[subprocess.Popen[bytes]] = []
        self.lists: list[JobList] = []
        """Those that have open jobs."""

    def join(self, limit_s: float = _NEVER) -> "JobList":
        """Return a new list of jobs.

        The list that has had the least time of the processes so far is the next to have a job
        done: who gives them long jobs does not keep them from the others.

        Args:
            limit_s: seconds that its jobs may take, all of them together; then it gives up.
        """
        return JobList(self, limit_s)

    def close(self) -> None:
        """Stop the processes; what was open stays undone."""
        for worker in self.workers:
            self._stop(worker)
        self.workers.clear()
        for jobs in list(self.lists):
            jobs.close()
        for process in self._killed:
            process.wait()
        self._killed.clear()

    def warm_up(self) -> None:
        """Start the processes now, without waiting until they are ready."""
        while len(self.workers) < self._size:
            self.workers.append(self._start())

    def await_start(self) -> None:
        """Start the processes and wait until they are ready.

        Raises:
            RuntimeError: or what the program says: one could not start.
        """
        self.warm_up()
        try:
            while not all(worker.ready for worker in self.workers):
                self.select()
                self.poll()
        except Exception:
            self.close()
            raise

    def poll(self) -> None:
        """Take in what has been done by now, stop what takes too long, begin what waits.

        Raises:
            RuntimeError: or what the program says: a process could not start.
        """
        self._killed = [process for process in self._killed if process.poll() is None]
        for worker in list(self.workers):
            self._receive(worker)
            if worker.deadline <= time.monotonic():
                self._settle(worker, None)
                self._replace(worker)
        self.hand_out()

    def hand_out(self) -> None:
        """Give what waits to processes that are free."""
        wanted = sum(len(jobs.open) for jobs in self.lists)
        while len(self.workers) < min(self._size, wanted):
            self.workers.append(self._start())
        for worker in list(self.workers):
            if not worker.ready or worker.jobs is not None:
                continue
            waiting = [jobs for jobs in self.lists if jobs.waiting]
            if not waiting:
                return
            if worker.process.poll() is not None:  # killed while idle
                self._replace(worker)
                continue
            worker.jobs = min(waiting, key=lambda jobs: jobs.taken_s)
            worker.job = worker.jobs.waiting.popleft()
            worker.begun = time.monotonic()
            worker.deadline = worker.begun + self._timeout_s
            worker.unsent = json.dumps(worker.jobs.open[worker.job]).encode() + b"\n"
            _send(worker)

    def _receive(self, worker: Worker) -> None:
        """Take in what a process has written."""
        _send(worker)
        assert worker.process.stdout is not None
        try:
            read = os.read(worker.process.stdout.fileno(), 65536)
        except BlockingIOError:
            return
        if not read:
            if not worker.ready:
                self._drop(worker)
                raise self._program.refused("a worker process that ended at its start")
            # It died, at work or while idle.
            self._settle(worker, None)
            self._replace(worker)
            return
        *lines, worker.received = (worker.received + read).split(b"\n")
        for line in lines:
            said = json.loads(line)
            if worker.ready:
                self._settle(worker, said)
            elif said != "ready":
                self._drop(worker)
                raise self._program.refused(said)
            worker.ready = True

    def _settle(self, worker: Worker, outcome: Any) -> None:
        if worker.jobs is not None:
            worker.jobs.settle(worker.job, outcome, time.monotonic() - worker.begun)
        worker.job, worker.jobs, worker.deadline, worker.unsent = None, None, _NEVER, b""

    def select(self) -> None:
        """Wait until a process writes or has room to read, or is over the time limit."""
        limit = min(worker.deadline for worker in self.workers)
        with selectors.DefaultSelector() as selector:
            for worker in self.workers:
                assert worker.process.stdout is not None
                selector.register(worker.process.stdout, selectors.EVENT_READ)
                if worker.unsent:
                    assert worker.process.stdin is not None
                    selector.register(worker.process.stdin, selectors.EVENT_WRITE)
            selector.select(None if limit == _NEVER else max(0.0, limit - time.monotonic()))

    def _start(self) -> Worker:
        program = self._program
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", program.module),
                *(str(int(self._timeout_s) + 60), *program.arguments),
            ],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        return Worker(process)

    def _stop(self, worker: Worker) -> None:
        """Kill a process; `poll` sees when it is gone."""
        worker.process.kill()
        for pipe in (worker.process.stdin, worker.process.stdout):
            assert pipe is not None
            pipe.close()
        self._killed.append(worker.process)

    def _drop(self, worker: Worker) -> None:
        self._stop(worker)
        self.workers.remove(worker)

    def _replace(self, worker: Worker) -> None:
        self._stop(worker)
        self.workers[self.workers.index(worker)] = self._start()


class JobList:
    """The jobs of one user of a pool, and what came of them; `WorkerPool.join` makes it."""

    def __init__(self, pool: WorkerPool, limit_s: float) -> None:
        self.pool, self._limit_s = pool, limit_s
        self.taken_s = 0.0
        """Seconds that processes have been at its jobs."""
        self.done: dict[Hashable, Any] = {}
        """What came of each job; None where its process took too long, or died, or time is up."""
        self.open: dict[Hashable, Sequence[str]] = {}
        self.waiting: deque[Hashable] = deque()
        self.given_up = 0
        """Jobs that were not done when it gave up, or came later."""

    def begin(self, key: Hashable, job: Sequence[str]) -> None:
        """See that a job is done once, as `done[key]`."""
        if key in self.done or key in self.open:
            return
        if not self.open:
            self.pool.lists.append(self)
        self.open[key] = job
        self.waiting.append(key)
        if self.taken_s >= self._limit_s:
            self.give_up()

    def give_up(self) -> None:
        """Have no more jobs done: what came of all that are open, and of later ones, is None.

        One that a process is at goes on for nobody.
        """
        self._limit_s = 0.0
        self.given_up += len(self.open)
        self.done |= dict.fromkeys(self.open)
        self.close()

    def wait(self, keys: Collection[Hashable]) -> None:
        """Wait for jobs, which are done before all others that have not begun."""
        if keys:
            first = set(keys)
            self.waiting = deque(sorted(self.waiting, key=lambda key: key not in first))
        self.pool.hand_out()
        while not self.open.keys().isdisjoint(keys):
            self.pool.select()
            self.pool.poll()

    def settle(self, key: Hashable, outcome: Any, seconds: float) -> None:
        """Take in what came of a job that took a process so many seconds."""
        self.taken_s += seconds
        if key in self.open:
            self.done[key] = outcome
            del self.open[key]
            if not self.open:
                self.pool.lists.remove(self)
        if self.taken_s >= self._limit_s:
            self.give_up()

    def close(self) -> None:
        """Drop what is open, which stays undone."""
        if self.open:
            self.pool.lists.remove(self)
        self.open.clear()
        self.waiting.clear()


def _send(worker: Worker) -> None:
    """Write what a process still has to be sent, as far as there is room."""
    if worker.unsent:
        assert worker.process.stdin is not None
        # A process that ended just now closes its output too, where the caller will see it.
        with suppress(BlockingIOError, BrokenPipeError):
            worker.unsent = worker.unsent[os.write(worker.process.stdin.fileno(), worker.unsent) :]


def serve(prepare: Callable[[list[str]], Callable[[list[str]], Any]]) -> None:
    """Do the jobs of a pool until it closes its end; the body of a worker process.

    Args:
        prepare: takes the program's arguments and returns what does a job, JSON-ready.
    """
    limit_s, *arguments = sys.argv[1:]
    for number in (signal.SIGINT, signal.SIGTERM):  # for the caller, who ends this process
        signal.signal(number, signal.SIG_IGN)
    # Whatever the code that is run prints or reads must not come between the jobs.
    jobs, said = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    try:
        work = prepare(arguments)
    except Exception as error:
        print(json.dumps(f"{type(error).__name__}: {error}"), file=said, flush=True)
        return
    print('"ready"', file=said, flush=True)
    for line in jobs:
        # Ends this process where it hangs and the caller, killed, can no longer do it.
        signal.alarm(int(limit_s))
        try:
            outcome = work(json.loads(line))
        except Exception:  # whatever is raised means that it cannot tell
            outcome = None
        signal.alarm(0)
        print(json.dumps(outcome), file=said, flush=True)
