"""Score running reasoning traces inside vLLM, and stop the worst when memory runs short.

The names below load on first use, so that `import step_infer` stays light.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from step_infer.card import ScorerCard
    from step_infer.client import Result, StepLLM
    from step_infer.sampling import Sampling
    from step_infer.scorer import StepScorer, load_scorer, save_scorer
    from step_infer.trace import Trace

__version__ = "0.1.0"

_HOMES = {
    "Result": "client",
    "Sampling": "sampling",
    "ScorerCard": "card",
    "StepLLM": "client",
    "StepScorer": "scorer",
    "Trace": "trace",
    "load_scorer": "scorer",
    "save_scorer": "scorer",
}

__all__ = [
    "Result",
    "Sampling",
    "ScorerCard",
    "StepLLM",
    "StepScorer",
    "Trace",
    "load_scorer",
    "save_scorer",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"step_infer.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'step_infer' has no attribute {name!r}")
