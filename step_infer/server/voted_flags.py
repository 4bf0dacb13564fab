"""The options of step-serve for a voted model, and the environment that they stand for."""

import argparse
import importlib.metadata
import json
import os
from collections.abc import Callable
from typing import Any

from step_infer.client.grading import Grader
from step_infer.client.kinds import AnswerOptions
from step_infer.errors import InputError
from step_infer.server.voted_settings import VARIABLE, VotedSettings

PLUGIN = "step"
"""The name of our plug-ins in `VLLM_PLUGINS`."""
VOTED_FLAGS = (
    "--voted-model-name",
    "--voted-traces",
    "--voted-max-traces",
    "--voted-max-seconds",
    "--voted-max-children",
    "--voted-answers",
    "--step-page",
)
_PLUGINS = "VLLM_PLUGINS"
_GROUPS = "vllm."
_ON_REQUEST = "vllm.endpoint_plugins"
"""Plug-ins that vLLM loads only if they are named; the others, unless some are."""


def add_voted_options(add: Callable[..., Any], advanced: Callable[..., Any]) -> None:
    """Add the options to a parser, by its `add_argument`; `advanced` is for what few users set."""
    add(
        "--voted-model-name",
        metavar="NAME",
        help="also serve the model under this name, with one voted answer a call (default: null)",
    )
    add(
        "--voted-traces",
        type=int,
        metavar="N",
        help=f"traces of a voted call (default: {VotedSettings.traces})",
    )
    advanced(
        "--voted-max-traces",
        type=int,
        metavar="N",
        help="the most traces that a voted call may ask for (default: --voted-traces)",
    )
    advanced(
        "--voted-max-seconds",
        type=float,
        metavar="S",
        help="the most seconds that a voted call takes (default: no limit)",
    )
    advanced(
        "--voted-max-children",
        type=int,
        metavar="N",
        help="let voted calls branch traces: the most children of one trace (default: null)",
    )
    advanced(
        "--voted-answers",
        metavar="KIND",
        help="answer kind of voted calls that name none: a name, the dotted path of your own "
        "function, or a JSON object with kind, pattern or tolerance (default: auto)",
    )
    advanced(
        "--step-page",
        action="store_true",
        help="show running voted calls at /step, for everybody with an API key (default: false)",
    )


def voted_settings(own: argparse.Namespace) -> VotedSettings | None:
    """Return the settings of a command line; None without a voted model.

    Raises:
        InputError: one of them is bad, or there is no name.
    """
    given = {
        "traces": own.voted_traces,
        "max_traces": own.voted_max_traces,
        "max_seconds": own.voted_max_seconds,
        "max_children": own.voted_max_children,
        "answers": None if own.voted_answers is None else _answers(own.voted_answers),
        "page": own.step_page or None,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if own.voted_model_name is not None:
        return VotedSettings(own.voted_model_name, **given)
    if given:
        prefix = {name: "step" if name == "page" else "voted" for name in given}
        flags = ", ".join(f"--{prefix[name]}-{name.replace('_', '-')}" for name in given)
        raise InputError(
            f"Expected --voted-model-name beside {flags}, found none. "
            "Hint: --voted-model-name MODEL-voted."
        )
    return None


def _answers(text: str) -> AnswerOptions:
    values: object = text
    if text.lstrip().startswith("{"):
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"Expected an answer kind or a JSON object after --voted-answers, found "
                f'{text!r:.60}. Hint: such as \'{{"kind": "number", "tolerance": "1%"}}\'.'
            ) from error
    options = AnswerOptions.from_values(values, may_run_code=True)
    if options.runs_code:
        with Grader(answers=options):
            pass  # it can be loaded: after the engine's start it would be late to hear that
    return options


def variables_of(settings: VotedSettings) -> dict[str, str]:
    """Return the environment variables by which vLLM's server serves a voted model.

    Naming one plug-in keeps out all that are not named: those that would be loaded stay so.
    """
    named = os.environ.get(_PLUGINS)
    if named is not None:
        plugins = [name for name in named.split(",") if name]
    else:
        points = importlib.metadata.entry_points()
        groups = [g for g in points.groups if g.startswith(_GROUPS) and g != _ON_REQUEST]
        plugins = sorted({name for group in groups for name in points.select(group=group).names})
    if PLUGIN not in plugins:
        plugins.append(PLUGIN)
    return {VARIABLE: settings.to_text(), _PLUGINS: ",".join(plugins)}
