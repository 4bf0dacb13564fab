"""Processes that stand still at a point of their work, where a late test still finds them."""

import itertools
import os
import sys
import time
from pathlib import Path, PurePath
from typing import Any

VARIABLE = "HELD_AT"


def held_at(name: str, count: int) -> dict[str, str]:
    """Return the environment of a Python process that does what `stand_still_at` says."""
    folders = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    path = os.pathsep.join(filter(None, folders))
    return {**os.environ, "PYTHONPATH": path, VARIABLE: f"{count} {name}"}


def stand_still_at(name: str, count: int) -> None:
    """Let this process stand still before it opens a file to write, or renames one.

    Args:
        name: pattern of the file's path, or of that to which it is renamed.
        count: for which of those, from 1; no later one is written either.
    """
    met = itertools.count(1)

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.rename":
            path = arguments[1]
        elif event == "open" and {*str(arguments[1])} & {*"aw"}:
            path = arguments[0]
        else:
            return
        if isinstance(path, (str, os.PathLike)) and PurePath(path).match(name):
            while next(met) >= count:
                time.sleep(3600)

    sys.addaudithook(look)
