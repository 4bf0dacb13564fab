"""How long a test waits for what is to come, on however busy a machine."""

import time
from collections.abc import Callable
from typing import Any

PATIENCE_S = 120


def wait_until(true: Callable[[], Any]) -> bool:
    """Return whether something holds, at last."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := true()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(found)
