"""Score running reasoning traces inside vLLM, and stop the worst when memory runs short.

The names below load on first use, so that `import step_infer` stays light.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from step_infer.client.llm import Result, StepLLM
    from step_infer.client.trace import Sampling, Trace
    from step_infer.scorer.card import ScorerCard
    from step_infer.scorer.network import StepScorer, load_scorer, save_scorer

__version__ = "0.1.0"

_HOMES = {
    "Result": "client.llm",
    "Sampling": "client.trace",
    "ScorerCard": "scorer.card",
    "StepLLM": "client.llm",
    "StepScorer": "scorer.network",
    "Trace": "client.trace",
    "load_scorer": "scorer.network",
    "save_scorer": "scorer.network",
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
