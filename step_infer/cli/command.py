"""The one boundary where the toolkit's commands print errors and exit."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from step_infer.errors import InputError


class Terminated(KeyboardInterrupt):
    """A SIGTERM, in a block that puts its things in order first."""


def run(main: Callable[[], int | None]) -> None:
    """Run a command's body and leave the process with its exit status.

    Status 0 is success, 2 a user's mistake (one line on stderr, no traceback), 130 an interrupt,
    143 a SIGTERM in a block of `sigterm_as_interrupt`.
    Any other exception is a defect of ours and keeps its traceback.
    """
    # Torch reads it when it is loaded: a CPU engine in this process would tell users of NUMA nodes.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        status = main() or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except BrokenPipeError:
        # The reader of our output went away (`| head`): not an error, but nothing more to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except Terminated:
        print("terminated", file=sys.stderr)
        status = 143
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    sys.exit(status)


class _Interrupt:
    """The handler of a block of `sigterm_as_interrupt`."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.received = False

    def __call__(self, number: int, frame: object) -> None:
        if os.getpid() != self.owner:  # a fork of ours, which has nothing to put in order
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not self.received:  # `timeout` sends two: the second must not end what one began
            self.received = True
            raise Terminated


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM interrupt the block, for one that has something to keep.

    Elsewhere it ends the process at once: vLLM's start can hang where it is interrupted. Of blocks
    inside each other the outermost counts, so that a second SIGTERM interrupts none of them.

    Raises:
        Terminated: there was a SIGTERM.
    """
    before = signal.getsignal(signal.SIGTERM)
    inside = isinstance(before, _Interrupt) and before.owner == os.getpid()
    if inside or threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = _Interrupt()
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    except KeyboardInterrupt as error:
        if handler.received and not isinstance(error, Terminated):  # Ray's waits raise their own
            raise Terminated from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
