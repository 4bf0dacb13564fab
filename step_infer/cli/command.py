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


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM interrupt the block, for one that has something to keep.

    Elsewhere it ends the process at once: vLLM's start can hang where it is interrupted.

    Raises:
        Terminated: there was a SIGTERM.
    """
    received: list[int] = []
    owner = os.getpid()

    def end(number: int, frame: object) -> None:
        if os.getpid() != owner:  # a fork of ours, which has nothing to put in order
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not received:  # `timeout` sends it twice: the second must not end what the first began
            received.append(number)
            raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt as error:
        if received and not isinstance(error, Terminated):  # Ray's waits raise one of their own
            raise Terminated from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
