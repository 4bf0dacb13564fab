"""Settings of the vLLM adapter, as they stand in the engine's `additional_config["step"]`."""

import dataclasses
import json
from dataclasses import dataclass
from math import isfinite
from typing import Any

from step_infer.errors import InputError
from step_infer.policy import VICTIMS
from step_infer.scorer.aggregate import AGGREGATORS

CONFIG_KEY = "step"
"""Key in the engine's `additional_config`, in a request's `extra_args`, and in what comes back."""


def _check(name: str, value: Any, good: bool, expected: str) -> None:
    if not good:
        raise InputError(f"Expected step setting {name} {expected}, found {value!r:.60}.")


@dataclass(frozen=True)
class StepSettings:
    """How the adapter scores and prunes; every field can stand in `additional_config["step"]`."""

    scorer: str | None = None
    """Path of the scorer's safetensors file; None: only `capture` and `confidence` are left."""
    prune: bool = True
    """Stop the worst trace when the KV cache is about to overflow; False scores only."""
    victim: str = "score"
    """Which trace of a group that is (`step_infer.policy.VICTIMS`): "score", or, for comparisons,
    "youngest", "longest", "least-confident" (needs confidence), or "rank" (of the request)."""
    min_keep: int = 1
    """Traces of a group that are always kept, running or finished."""
    min_steps: int = 1
    """Step scores that a trace must have before it can be stopped."""
    aggregator: str | None = None
    """Trace aggregator: "mean", "last", "min" or "ema"; None takes the scorer card's."""
    resume_free: float = 0.5
    """After pruning, waiting traces are admitted again when this part of the KV cache is free."""
    capture: bool = False
    """Return the hidden states at the boundaries of requests that ask for them (offline only)."""
    confidence: bool = False
    """Also report each trace's token confidence (see `step_infer.row_scorer`)."""
    event_log: str | None = None
    """File that gets a JSON line for each scored trace that ends (see `step_infer.event_log`)."""
    replay: bool = False
    """Take boundaries, scores and confidences from requests that bring recorded ones
    (`step-eval replay`): for measuring time, where the text means nothing."""
    boundary: dict[str, Any] | None = None
    """Boundary rule (`BoundaryRule.to_dict`) where no scorer card gives one."""
    allow_mismatch: tuple[str, ...] = ()
    """Fields of the scorer card that may differ from the model in use."""

    def __post_init__(self) -> None:
        known = ", ".join(AGGREGATORS)
        _check("min_keep", self.min_keep, _whole(self.min_keep, 1), "a whole number >= 1")
        _check("min_steps", self.min_steps, _whole(self.min_steps, 1), "a whole number >= 1")
        _check("resume_free", self.resume_free, 0 <= self.resume_free <= 1, "in [0, 1]")
        _check(
            "aggregator",
            self.aggregator,
            self.aggregator is None or self.aggregator in AGGREGATORS,
            f"out of {known}",
        )
        _check("victim", self.victim, self.victim in VICTIMS, f"out of {', '.join(VICTIMS)}")
        if self.victim == "least-confident" and not self.confidence:
            raise InputError(
                "Expected step setting confidence beside victim least-confident, found none."
            )
        if self.scorer is None and self.boundary is None:
            raise InputError(
                "Expected step setting scorer (a safetensors file), found none. "
                "Hint: make one with scorer-export."
            )

    @classmethod
    def from_additional_config(cls, additional_config: Any) -> "StepSettings":
        """Read the settings from an engine's `additional_config`.

        Raises:
            InputError: there are none, or a field is unknown or has a bad value.
        """
        values = additional_config.get(CONFIG_KEY) if additional_config else None
        if not isinstance(values, dict):
            raise InputError(
                f'Expected additional_config={{"{CONFIG_KEY}": {{"scorer": FILE}}}} for the step '
                f"scheduler and worker, found {additional_config!r:.60}."
            )
        fields = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in fields:
                raise InputError(
                    f"Expected a step setting out of {', '.join(fields)}, found {name!r:.60}."
                )
        return cls(**{**values, "allow_mismatch": tuple(values.get("allow_mismatch", ()))})

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as the value of `additional_config["step"]`."""
        return {**dataclasses.asdict(self), "allow_mismatch": list(self.allow_mismatch)}


class AdapterConfig:
    """An `additional_config` whose content does not change vLLM's compile-cache key.

    vLLM hashes a plain dict into that key, so that every new scorer path would compile the model
    again; the adapter runs outside the compiled graph, so nothing needs to be compiled anew.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of one key, as a dict would."""
        return self.values.get(key, default)

    def compute_hash(self) -> str:
        """Return the same text whatever the values are."""
        return "step_infer"

    def __repr__(self) -> str:
        return f"AdapterConfig({self.values!r})"


@dataclass(frozen=True)
class RequestOptions:
    """What one request asks of the adapter; None takes the engine's setting."""

    group: str | None = None
    """Traces of one group compete; without a group a trace is scored but never stopped."""
    prune: bool | None = None
    min_keep: int | None = None
    min_steps: int | None = None
    aggregator: str | None = None
    capture: bool = False
    window: int | None = None
    """Report the lowest group confidence of windows of this many tokens
    (`step_infer.confidence`); the engine must record confidences."""
    stop_below: float | None = None
    """Stop the trace as soon as a group confidence is lower than this."""
    replay: dict[str, Any] | None = None
    """Recorded signals (`RecordedSteps`), for an engine with the setting replay."""
    rank: float | None = None
    """The trace of the lowest is stopped first, for an engine with the setting victim "rank"."""

    @classmethod
    def from_extra_args(cls, extra_args: dict[str, Any] | None) -> "RequestOptions | None":
        """Read a request's options; None where it did not opt in.

        The value under "step" is an object, its JSON text, or just the group's name: over HTTP
        `vllm_xargs` carries texts and numbers only.

        Raises:
            InputError: an option is unknown or has a bad value.
        """
        value = (extra_args or {}).get(CONFIG_KEY)
        if value is None:
            return None
        as_text = isinstance(value, str)
        if as_text:
            try:
                value = json.loads(value) if value.lstrip().startswith("{") else {"group": value}
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"Expected JSON or a group name as step option, found {value!r:.60}."
                ) from error
        if not isinstance(value, dict):
            raise InputError(f"Expected an object as step option, found {value!r:.60}.")
        fields = [field.name for field in dataclasses.fields(cls)]
        for name in value:
            if name not in fields:
                raise InputError(
                    f"Expected a step option out of {', '.join(fields)}, found {name!r:.60}."
                )
        options = cls(**value)
        if options.group is not None and not isinstance(options.group, str):
            raise InputError(
                f"Expected step option group to be a text, found {options.group!r:.60}."
            )
        if options.group is not None and not options.group.strip():
            raise InputError("Expected a group name as step option, found a blank one.")
        if options.group is not None and "\0" in options.group:
            raise InputError(
                f"Expected step option group without NUL characters, found {options.group!r:.60}."
            )
        if options.capture and as_text:  # over HTTP options are texts, and states are not JSON
            raise InputError(
                "Expected step option capture in offline requests only, found it in a text."
            )
        if options.replay is not None and as_text:
            raise InputError(
                "Expected step option replay in offline requests only, found it in a text."
            )
        for name in ("min_keep", "min_steps", "window"):
            number = getattr(options, name)
            good = number is None or _whole(number, 1)
            _check(name, number, good, "a whole number >= 1")
        for name in ("stop_below", "rank"):
            number = getattr(options, name)
            _check(name, number, number is None or _finite(number), "a finite number")
        if options.stop_below is not None and options.window is None:
            raise InputError("Expected step option window beside stop_below, found none.")
        for name in ("prune", "capture"):
            flag = getattr(options, name)
            _check(name, flag, flag is None or isinstance(flag, bool), "true or false")
        if options.aggregator is not None and options.aggregator not in list(AGGREGATORS):
            known = ", ".join(AGGREGATORS)
            raise InputError(
                f"Expected step option aggregator out of {known}, found {options.aggregator!r:.60}."
            )
        return options


def _finite(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return isfinite(value)
    except OverflowError:  # a whole number beyond any float
        return False


def _whole(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low
