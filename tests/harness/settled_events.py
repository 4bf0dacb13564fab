"""Event logs of an engine in another process, whose thread writes them a little later."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from step_eval.recorded.events import read_events

_QUIET_S = 0.5


def read_settled_events(paths: Sequence[Path | str]) -> tuple[list[dict[str, Any]], int]:
    """Return what `read_events` does, once the files have not grown for a while."""
    sizes = None
    while sizes != (sizes := [Path(path).stat().st_size for path in paths]):
        time.sleep(_QUIET_S)
    return read_events(paths)
