"""vLLM's log, which the first engine of a process sets up for all that comes after it."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def untouched_vllm_log() -> Iterator[None]:
    """Make vLLM log as in a process in which no engine has started; afterwards as before."""
    logger = logging.getLogger("vllm")
    before = logger.level, logger.handlers, logger.propagate
    logger.setLevel(logging.NOTSET)
    logger.handlers, logger.propagate = [], True
    try:
        yield
    finally:
        logger.setLevel(before[0])
        logger.handlers, logger.propagate = before[1:]
