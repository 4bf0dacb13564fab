"""Runs that share a device take turns: one measures, the others stand still."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from step_infer.errors import InputError

_PAUSE_S = 0.05


@contextmanager
def device_lock(path: Path | str | None, alone: bool) -> Iterator[None]:
    """Hold a lock file, alone or together with others that do not ask to be alone.

    Args:
        path: the file, made where it is missing; None waits for nobody.
        alone: True to measure; False to start an engine, which several may do at once.

    Raises:
        InputError: the file cannot be written.
    """
    if path is None:
        yield
        return
    try:
        file = Path(path).open("a")  # noqa: SIM115 - closed below
    except OSError as error:
        raise InputError(
            f"Expected a writable lock file at {path}, found: {error.strerror}. "
            "Hint: choose another --device-lock."
        ) from error
    # flock by itself: filelock can share a lock only through an SQLite database.
    with file:
        fcntl.flock(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        try:
            yield
        finally:
            # By word: an engine process that was forked meanwhile holds the file open as well.
            fcntl.flock(file, fcntl.LOCK_UN)
    if alone:
        time.sleep(_PAUSE_S)  # else the others, who wait, would seldom come first
