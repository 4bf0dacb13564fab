"""Scripts of benchmarks/, as modules."""

import importlib
import sys
from types import ModuleType

from places import ROOT


def load(name: str) -> ModuleType:
    """Return a script's module, loaded as when the script runs."""
    folder = str(ROOT / "benchmarks")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)
