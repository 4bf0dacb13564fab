"""The file of a benchmark that goes on where it stopped: a JSON line for each finished run."""

import json
from pathlib import Path
from typing import Any

from step_infer.errors import InputError


def read_runs(path: Path) -> list[dict[str, Any]]:
    """Return the runs that are done; none where there is no file.

    Raises:
        InputError: the file holds something else.
    """
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(
            f"Expected --out to hold a run a line, as JSON, found: {error}. Hint: name a new file."
        ) from error
