"""The one exception type for everything a user can get wrong."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """A user's input, file or setting cannot be used.

    The message is one line: what was expected, what was found, what to do. Library code raises it;
    only a command turns it into exit status 2 (see :mod:`step_infer.cli.command`).
    """

    def __init__(self, message: str) -> None:
        # Another library's reason, which may stand in it, can have several.
        lines = (line.strip() for line in message.splitlines())
        super().__init__(" ".join(line for line in lines if line))


@contextmanager
def logged_errors(logger: logging.Logger, here: bool = True) -> Iterator[None]:
    """Log an `InputError` that ends an engine's start, before vLLM puts its traceback around it.

    Args:
        logger: where to.
        here: False in a process that leaves it to another one.
    """
    try:
        yield
    except InputError as error:
        if here:
            logger.error("The step scorer cannot start. %s", error)
        raise
