"""Settings of the vLLM adapter, as they stand in the engine's `additional_config["step"]`."""

import dataclasses
import json
from dataclasses import dataclass
from math import isfinite
from typing import Any, Self

from step_infer.errors import InputError
from step_infer.scorer.aggregate import AGGREGATORS
from step_infer.wire import CONFIG_KEY

MAX_GROUP_CHARACTERS = 256
INHERITED = frozenset({"parent", "tokens", "scores", "confidences"})
"""Keys of the request option `inherit`."""


def _check(name: str, value: Any, good: bool, expected: str) -> None:
    if not good:
        raise InputError(f"Expected step {name} {expected}, found {value!r:.60}.")


@dataclass(frozen=True)
class StepSettings:
    """How the adapter scores and prunes; every field can stand in `additional_config["step"]`."""

    scorer: str | None = None
    """Path of the scorer's safetensors file; None: only `capture` and `confidence` are left."""
    prune: bool = True
    """Stop the worst trace when the KV cache is about to overflow; False scores only."""
    min_keep: int = 1
    """Traces of a group that are always kept, running or finished."""
    min_steps: int = 1
    """Step scores that a trace must have before it can be stopped."""
    aggregator: str | None = None
    """Trace aggregator: "mean", "last", "min" or "ema"; None takes the scorer card's."""
    resume_free: float = 0.5
    """After pruning, waiting traces are admitted again when this part of the KV cache is free."""
    max_held_steps: int | None = 256
    """Engine steps after which a group that waits for this is held back no longer, so that groups
    share the cache; None: no limit, for an engine whose groups are all of one owner."""
    private_groups: bool = False
    """Only traces of one caller share a group, and one whose caller is unknown cannot name a group;
    `step_infer.server.callers` makes callers known."""
    capture: bool = False
    """Return the hidden states at the boundaries of requests that ask for them (offline only)."""
    confidence: bool = False
    """Also report token confidences (`step_infer.row_scorer`); on for a scorer that takes them."""
    event_log: str | None = None
    """File that gets a JSON line for each scored trace that ends (see `step_infer.event_log`)."""
    boundary: dict[str, Any] | None = None
    """Boundary rule (`BoundaryRule.to_dict`) where no scorer card gives one."""
    allow_mismatch: tuple[str, ...] = ()
    """Fields of the scorer card that may differ from the model in use."""

    def __post_init__(self) -> None:
        known = ", ".join(AGGREGATORS)
        _check("setting min_keep", self.min_keep, _whole(self.min_keep, 1), "a whole number >= 1")
        _check(
            "setting min_steps", self.min_steps, _whole(self.min_steps, 1), "a whole number >= 1"
        )
        _check(
            "setting max_held_steps",
            self.max_held_steps,
            self.max_held_steps is None or _whole(self.max_held_steps, 0),
            "a whole number >= 0, or null",
        )
        _check("setting resume_free", self.resume_free, 0 <= self.resume_free <= 1, "in [0, 1]")
        _check(
            "setting aggregator",
            self.aggregator,
            self.aggregator is None or self.aggregator in AGGREGATORS,
            f"out of {known}",
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
    (`step_infer.scorer.group_confidence`); the engine must record confidences."""
    stop_below: float | None = None
    """Stop the trace as soon as a group confidence is lower than this."""
    progress: bool = False
    """Send the trace score with the outputs on the way, whenever there is a new step score."""
    branch: bool = False
    """Send what a branch of the trace would inherit as well: more at each new score."""
    inherit: dict[str, Any] | None = None
    """Of a branch: "tokens", how many at the prompt's end its parent generated, the last one a step
    boundary; "scores" and, where confidences are recorded, "confidences" of their boundaries;
    "parent", the engine's name of the parent's request, for the event log (not as a text)."""

    @classmethod
    def from_extra_args(cls, extra_args: dict[str, Any] | None) -> Self | None:
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
        options.check(as_text)
        return options

    def check(self, as_text: bool) -> None:
        """Refuse values that cannot be.

        Args:
            as_text: whether the options came as a text, as they do over HTTP.

        Raises:
            InputError: an option has a bad value, or cannot come as a text.
        """
        if self.group is not None and not isinstance(self.group, str):
            raise InputError(f"Expected step option group to be a text, found {self.group!r:.60}.")
        if self.group is not None and not self.group.strip():
            raise InputError("Expected a group name as step option, found a blank one.")
        if self.group is not None and "\0" in self.group:
            raise InputError(
                f"Expected step option group without NUL characters, found {self.group!r:.60}."
            )
        if self.group is not None and len(self.group) > MAX_GROUP_CHARACTERS:
            raise InputError(
                f"Expected step option group of at most {MAX_GROUP_CHARACTERS} characters, found "
                f"{len(self.group):,}."
            )
        if self.capture and as_text:  # states are not JSON
            raise InputError("Expected step option capture in offline requests only, found a text.")
        if self.inherit is not None:
            self._check_inherit(as_text)
        for name in ("min_keep", "min_steps", "window"):
            number = getattr(self, name)
            good = number is None or _whole(number, 1)
            _check(f"option {name}", number, good, "a whole number >= 1")
        good = self.stop_below is None or finite(self.stop_below)
        _check("option stop_below", self.stop_below, good, "a finite number")
        if self.stop_below is not None and self.window is None:
            raise InputError("Expected step option window beside stop_below, found none.")
        for name in ("prune", "capture", "progress", "branch"):
            flag = getattr(self, name)
            _check(f"option {name}", flag, flag is None or isinstance(flag, bool), "true or false")
        if self.aggregator is not None and self.aggregator not in list(AGGREGATORS):
            known = ", ".join(AGGREGATORS)
            raise InputError(
                f"Expected step option aggregator out of {known}, found {self.aggregator!r:.60}."
            )

    def _check_inherit(self, as_text: bool) -> None:
        if as_text:  # a client of a server would score its own traces
            raise InputError(
                "Expected step option inherit in offline requests only, found a text. "
                "Hint: leave it out; StepLLM branches traces."
            )
        inherit = self.inherit
        good = isinstance(inherit, dict) and set(inherit) == INHERITED
        if good:
            assert inherit is not None
            good = isinstance(inherit["parent"], str) and _whole(inherit["tokens"], 1)
            for name in ("scores", "confidences"):
                numbers = inherit[name]
                good &= isinstance(numbers, list)
                good = good and all(number is None or finite(number) for number in numbers)
        _check("option inherit", inherit, good, f"an object with {', '.join(sorted(INHERITED))}")
        if self.capture or self.window is not None:
            raise InputError(
                "Expected step option inherit without capture and window, which a branch cannot "
                "inherit, found one of them. Hint: leave it out."
            )


def finite(value: Any) -> bool:
    """Return whether a value from a client is a finite number; a truth value is none."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return isfinite(value)
    except OverflowError:  # a whole number beyond any float
        return False


def _whole(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low
