"""A user's own answers: functions that run in worker processes, each call with a time limit."""

from collections.abc import Hashable

from step_infer.client.kinds.kind import OPEN, Open
from step_infer.client.worker_pool import WorkerProgram
from step_infer.errors import InputError


class FunctionKind:
    """What a user's function finds; equal as the user's other function says, or else as text.

    A dotted path names a module, a class that is made without arguments, or an object, with a
    function `extract(text)`, which gets the final part of a response and returns a text or None,
    and perhaps `equal(first, second)`; or else it names the first of these functions itself.
    """

    def __init__(self, path: str) -> None:
        """Name the functions; they are imported in the worker processes alone."""
        self.program = WorkerProgram(
            "step_infer.client.function_worker",
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

    def compare(self, first: str, second: str, in_vote: bool) -> bool | None | Open:
        """Leave the verdict to a worker process."""
        return True if first == second else OPEN
