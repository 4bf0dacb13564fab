"""The body of a grading process: math-verify's verdicts on pairs of answers."""

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from step_infer.client.worker_pool import serve


def prepare(arguments: list[str]) -> Callable[[list[str]], bool | None]:
    """Load math-verify, and return what compares the two answers of a job."""
    from math_verify import parse, verify

    @lru_cache(maxsize=1000)
    def read(text: str) -> list[Any]:
        return parse(f"${text}$", parsing_timeout=None, raise_on_error=True)

    def compare(pair: list[str]) -> bool | None:
        parsed = [read(text) for text in pair]
        # The library reads its first argument as the right one: only what holds either way.
        return (
            all(
                verify(*both, timeout_seconds=None, raise_on_error=True)
                for both in (parsed, parsed[::-1])
            )
            if all(parsed)
            else None
        )

    logging.disable(logging.CRITICAL)
    return compare


if __name__ == "__main__":
    serve(prepare)
