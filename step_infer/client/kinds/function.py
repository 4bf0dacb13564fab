"""A user's own answers: functions that run in worker processes, each call with a time limit."""

import pkgutil
import signal
import sys
import traceback
from collections.abc import Callable, Hashable
from typing import Any

from step_infer.client.kinds.kind import OPEN, Open
from step_infer.client.worker_pool import WorkerProgram, serve
from step_infer.errors import InputError

_START_S = 60
_LONGEST_OWN = 100_000


class FunctionKind:
    """What a user's function finds; equal as the user's other function says, or else as text.

    A dotted path names a module, a class that is made without arguments, or an object, with a
    function `extract(text)`, which gets the final part of a response and returns a text or None,
    and perhaps `equal(first, second)`; or else it names the first of these functions itself.
    """

    def __init__(self, path: str) -> None:
        """Name the functions; they are imported in the worker processes alone."""
        self.program = WorkerProgram(
            "step_infer.client.kinds.function",
            (path,),
            lambda reason: InputError(
                f"Expected an answer kind at {path} that can be loaded, found {reason}. Hint: a "
                "dotted path to a function, or to a class or module with extract, that can be "
                "imported here."
            ),
        )

    def extract(self, text: str, think_end: str | None) -> str | None | Open:
        """Leave the answer to a worker process."""
        return OPEN

    def clean(self, answer: str) -> str:
        """Return an answer without spaces around it."""
        return answer.strip()

    def binding(self, answer: str) -> Hashable:
        """Return the answer itself: nothing else is known to be equal to the same others."""
        return answer

    def compare(self, first: str, second: str) -> bool | None | Open:
        """Leave the verdict to a worker process."""
        return True if first == second else OPEN


def prepare(arguments: list[str]) -> Callable[[list[str]], str | bool | None]:
    """Import a user's functions, and return what calls them for a job."""
    (path,) = arguments
    signal.alarm(_START_S)
    named = pkgutil.resolve_name(path)
    if isinstance(named, type):
        named = named()
    extract = getattr(named, "extract", named)
    equal = getattr(named, "equal", None)
    if not callable(extract):
        raise TypeError(f"{path} has no function extract")
    signal.alarm(0)
    told: set[str] = set()

    def work(job: list[str]) -> str | bool | None:
        try:
            if len(job) == 1:
                return _as_answer(extract(job[0]))
            # Only what holds either way round.
            return equal is not None and bool(equal(*job)) and bool(equal(*job[::-1]))
        except Exception as error:
            if repr(error) not in told and len(told) < 10:
                told.add(repr(error))
                traceback.print_exc(file=sys.stderr)
            return None

    return work


def _as_answer(found: Any) -> str | None:
    if found is None:
        return None
    answer = str(found).strip()
    return answer if 0 < len(answer) <= _LONGEST_OWN else None


if __name__ == "__main__":
    serve(prepare)
