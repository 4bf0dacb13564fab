"""The step scorer: its network, its file and card, the boundary rule.

The names below load on first use, so that this stays light.
"""

import importlib
from typing import Any

_HOMES = {
    "AGGREGATORS": "aggregate",
    "BoundaryRule": "boundary",
    "ScorerCard": "card",
    "StepScorer": "network",
    "load_scorer": "network",
    "read_card": "card",
    "save_scorer": "network",
}

__all__ = [
    "AGGREGATORS",
    "BoundaryRule",
    "ScorerCard",
    "StepScorer",
    "load_scorer",
    "read_card",
    "save_scorer",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"step_infer.scorer.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
