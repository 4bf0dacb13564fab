"""How to call the adapter offline: sample, score, prune, vote, grade.

The names below load on first use, so that this stays light.
"""

import importlib
from typing import Any

_HOMES = {
    "AnswerOptions": "kinds",
    "Grader": "grading",
    "Result": "llm",
    "Sampling": "trace",
    "StepLLM": "llm",
    "Trace": "trace",
    "TracePlan": "trace",
    "Vote": "answers",
    "vote": "answers",
}

__all__ = [
    "AnswerOptions",
    "Grader",
    "Result",
    "Sampling",
    "StepLLM",
    "Trace",
    "TracePlan",
    "Vote",
    "vote",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"step_infer.client.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
