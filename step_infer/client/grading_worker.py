"""The body of a grading process: reads pairs of answers, writes verdicts, a JSON line each.

Run by `step_infer.client.grading` as a process of its own rather than a fork of the caller, so that
it shares neither threads nor an accelerator with it.
"""

import json
import logging
import os
import signal
import sys
from functools import lru_cache
from typing import Any


def main() -> None:
    """Answer [first, second] lines with true, false or null until standard input closes."""
    limit_s = int(sys.argv[1])
    for number in (signal.SIGINT, signal.SIGTERM):  # for the caller, who ends this process
        signal.signal(number, signal.SIG_IGN)
    # Whatever a library prints must not come between the verdicts.
    verdicts = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    from math_verify import parse, verify

    @lru_cache(maxsize=1000)
    def read(text: str) -> list[Any]:
        return parse(f"${text}$", parsing_timeout=None, raise_on_error=True)

    logging.disable(logging.CRITICAL)
    print('"ready"', file=verdicts, flush=True)
    for line in sys.stdin:
        # Ends this process where it hangs and the caller, killed, can no longer do it.
        signal.alarm(limit_s)
        try:
            parsed = [read(text) for text in json.loads(line)]
            # The library reads its first argument as the right one: only what holds either way.
            verdict = (
                all(
                    verify(*pair, timeout_seconds=None, raise_on_error=True)
                    for pair in (parsed, parsed[::-1])
                )
                if all(parsed)
                else None
            )
        except Exception:  # whatever the parser raises means that it cannot tell
            verdict = None
        signal.alarm(0)
        print(json.dumps(verdict), file=verdicts, flush=True)


if __name__ == "__main__":
    main()
