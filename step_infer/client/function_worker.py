"""The body of a worker process that runs a user's own functions."""

import pkgutil
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

from step_infer.client.worker_pool import serve

_START_S = 60
_LONGEST = 100_000
"""Characters in an answer."""
_MOST_TOLD = 10


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
            if repr(error) not in told and len(told) < _MOST_TOLD:
                told.add(repr(error))
                traceback.print_exc(file=sys.stderr)
            return None

    return work


def _as_answer(found: Any) -> str | None:
    if found is None:
        return None
    # Half of a surrogate pair has no code: no file and no response could hold the answer.
    answer = str(found).encode(errors="replace").decode().strip()
    return answer if 0 < len(answer) <= _LONGEST else None


if __name__ == "__main__":
    serve(prepare)
