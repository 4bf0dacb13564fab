"""vLLM's log, which the first engine of a process sets up for all that comes after it."""

import contextlib
import logging
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def untouched_vllm_log() -> Iterator[None]:
    """Make vLLM log as in a process in which no engine has started; afterwards as before.

    Warnings that vLLM gives once in a process can be given again.
    """
    if "vllm.logger" in sys.modules:
        sys.modules["vllm.logger"]._print_warning_once.cache_clear()
    logger = logging.getLogger("vllm")
    before = logger.level, logger.handlers, logger.propagate
    logger.setLevel(logging.NOTSET)
    logger.handlers, logger.propagate = [], True
    try:
        yield
    finally:
        logger.setLevel(before[0])
        logger.handlers, logger.propagate = before[1:]
