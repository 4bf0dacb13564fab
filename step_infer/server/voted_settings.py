"""What a voted model is, what one call may ask of it, and what such a call cannot do: plain data.

The operator's settings stand in the environment variable `STEP_VOTED`, as a JSON object; a call's
own stand under `step` in the body of its request.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from step_infer.client.branching import Branching
from step_infer.client.deciding import LIKELY, NEVER, UNBEATABLE
from step_infer.client.kinds import AnswerOptions
from step_infer.errors import InputError
from step_infer.settings import finite
from step_infer.wire import CONFIG_KEY

VARIABLE = "STEP_VOTED"
"""The environment variable that holds the settings."""
SCORE, UNIFORM = "score", "uniform"
VOTES = (SCORE, UNIFORM)
"""Votes weigh what their traces score, or 1 each."""
RULES = (UNBEATABLE, LIKELY, NEVER)
COMMENTS, REASONING = "comments", "reasoning"
PROGRESS = (COMMENTS, REASONING)
"""How a stream tells of its progress."""


@dataclass(frozen=True)
class VotedSettings:
    """What the operator says of the voted model; every field can stand in `STEP_VOTED`."""

    name: str
    """The name that calls give as their model."""
    traces: int = 64
    """Traces of a call that does not say how many."""
    max_traces: int | None = None
    """The most that a call may ask for; None: `traces`."""
    max_seconds: float | None = None
    """The most time that a call may take, and takes where it does not say; None: no limit."""
    answers: AnswerOptions = AnswerOptions("auto")
    """The answer kind of a call that does not say; it alone may be code."""
    page: bool = False
    """Show running calls at /step; all of them ask for their traces' progress then."""
    max_children: int | None = None
    """The most children of one trace that a call may ask for; None: no call branches traces."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise InputError(
                f"Expected a name for the voted model, found {self.name!r:.60}. "
                "Hint: --voted-model-name MODEL-voted."
            )
        for name in ("traces", "max_traces", "max_children"):
            value = getattr(self, name)
            if not (_whole(value) or (name != "traces" and value is None)):
                raise InputError(
                    f"Expected voted {name} as a whole number >= 1, found {value!r:.60}. "
                    f"Hint: such as {2 if name == 'max_children' else 64}."
                )
        if self.max_seconds is not None and not (finite(self.max_seconds) and self.max_seconds > 0):
            raise InputError(
                f"Expected voted max_seconds above 0, found {self.max_seconds!r:.60}. "
                "Hint: leave it out for no limit."
            )
        if not isinstance(self.page, bool):
            raise InputError(
                f"Expected voted page as true or false, found {self.page!r:.60}. "
                "Hint: leave it out for no page."
            )
        if self.traces > self.most_traces:
            raise InputError(
                f"Expected at most {self.most_traces} voted traces (max_traces), found "
                f"{self.traces}. Hint: raise --voted-max-traces, or lower --voted-traces."
            )

    @property
    def most_traces(self) -> int:
        """The most traces that a call may ask for."""
        return self.traces if self.max_traces is None else self.max_traces

    @classmethod
    def from_text(cls, text: str) -> "VotedSettings":
        """Read the settings from the value of `STEP_VOTED`.

        Raises:
            InputError: it is no JSON object, or a field is unknown, missing or bad.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict) or "name" not in values:
            raise InputError(
                f"Expected a JSON object with a name in {VARIABLE}, found {text!r:.60}. "
                f'Hint: {VARIABLE}=\'{{"name": "MODEL-voted"}}\'.'
            )
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise InputError(
                    f"Expected voted settings out of {', '.join(known)}, found {name!r:.60}. "
                    f"Hint: mend {VARIABLE}."
                )
        if values.get("answers") is not None:
            values["answers"] = AnswerOptions.from_values(values["answers"], may_run_code=True)
        return cls(**{name: value for name, value in values.items() if value is not None})

    def to_text(self) -> str:
        """Return the settings as the value of `STEP_VOTED`."""
        values = dataclasses.asdict(self)
        values["answers"] = {k: v for k, v in values["answers"].items() if v is not None}
        return json.dumps({k: v for k, v in values.items() if v is not None and v is not False})


@dataclass(frozen=True)
class VotedOptions:
    """What one call asks of the voted model, under `step` in its body."""

    traces: int = VotedSettings.traces
    """How many; where the call does not say, as many as the operator does."""
    seconds: float | None = None
    """Its budget, from the first trace's submission; not given: the operator's `max_seconds`."""
    tokens: int | None = None
    """Its budget of generated tokens, of all traces together."""
    stop_rule: str = UNBEATABLE
    """When the vote is decided: "unbeatable", "likely" or "never"."""
    vote: str = SCORE
    """What a trace's vote weighs: its "score", or "uniform", 1 each."""
    min_keep: int | None = None
    """Traces that are never pruned; None: as the engine's setting says."""
    progress: str = COMMENTS
    """How a stream tells of it: by "comments", or as "reasoning"."""
    branch: Branching | None = None
    """Good traces go on as further ones where traces were stopped for want of memory; None: not."""
    answers: AnswerOptions = VotedSettings.answers
    """How answers are found and compared; where the call does not say, as the operator does."""

    @classmethod
    def of(cls, values: Any, settings: VotedSettings) -> "VotedOptions":
        """Read a call's options.

        Args:
            values: what stands under `step`; None where nothing does.
            settings: the operator's, with limits and defaults.

        Raises:
            InputError: an option is unknown, bad, or above the operator's limit.
        """
        values = {} if values is None else values
        if not isinstance(values, Mapping):
            raise InputError(
                f"Expected an object under {CONFIG_KEY!r}, found {values!r:.60}. "
                f'Hint: {{"{CONFIG_KEY}": {{"traces": 16}}}}.'
            )
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise InputError(
                    f"Expected {CONFIG_KEY} options out of {', '.join(known)}, found {name!r:.60}. "
                    "Hint: leave it out."
                )
        for name in ("traces", "tokens", "min_keep"):
            _check(name, values, _whole, "a whole number >= 1")
        _check("seconds", values, lambda value: finite(value) and value > 0, "a number above 0")
        for name, choices in (("stop_rule", RULES), ("vote", VOTES), ("progress", PROGRESS)):
            _check(name, values, choices.__contains__, f"one of {', '.join(choices)}")
        given = {name: value for name, value in values.items() if value is not None}
        if "branch" in given:
            given["branch"] = _branching(given["branch"], settings.max_children)
        if "answers" in given:
            given["answers"] = _answers(given["answers"], settings.answers)
        own = {name: getattr(settings, name) for name in ("traces", "answers")}
        options = cls(**{**own, "seconds": settings.max_seconds, **given})
        if options.traces > settings.most_traces:
            raise InputError(
                f"Expected at most {settings.most_traces} traces, found {options.traces}. "
                "Hint: ask for fewer, or have the operator raise --voted-max-traces."
            )
        seconds, most_seconds = options.seconds, settings.max_seconds
        if seconds is not None and most_seconds is not None and seconds > most_seconds:
            raise InputError(
                f"Expected at most {most_seconds:g} seconds, found {seconds:g}. "
                "Hint: ask for fewer, or have the operator raise --voted-max-seconds."
            )
        return options


def _answers(values: Any, own: AnswerOptions) -> AnswerOptions:
    """Return the answer kind that a call asks for; the operator's where it names none."""
    asked = AnswerOptions.from_values(values)
    return own if asked.kind is None else asked


def _branching(values: Any, most_children: int | None) -> Branching | None:
    """Return how a call branches its traces; None where it does not."""
    known = {field.name for field in dataclasses.fields(Branching)}
    if not (isinstance(values, bool) or (isinstance(values, Mapping) and known >= set(values))):
        raise InputError(
            f"Expected {CONFIG_KEY} option branch as true, or an object with "
            f"{' or '.join(sorted(known))}, found {values!r:.60}. "
            "Hint: leave it out for the default."
        )
    if values is False:
        return None
    if most_children is None:
        raise InputError(
            f"Expected no {CONFIG_KEY} option branch, which this server does not offer, found "
            f"{values!r:.60}. Hint: leave it out, or have the operator give --voted-max-children."
        )
    given = {} if values is True else {n: v for n, v in values.items() if v is not None}
    given.setdefault("max_children", min(Branching.max_children, most_children))
    options = Branching(**given)
    if options.max_children > most_children:
        raise InputError(
            f"Expected at most {most_children} children of a trace (max_children), found "
            f"{options.max_children}. Hint: ask for fewer, or have the operator raise "
            "--voted-max-children."
        )
    return options


def refuse_what_no_vote_can_do(request: Any) -> None:
    """Refuse what a request asks that a vote cannot give.

    Args:
        request: vLLM's chat or text completion request, as it read it.

    Raises:
        InputError: names the first such field.
    """
    for name, value in (request.model_extra or {}).items():
        neutral = name in _LABELS or value is None or value in _NEUTRAL.get(name, ())
        if name != CONFIG_KEY and not neutral:
            raise InputError(
                f"Expected fields that this server knows for the voted model, found {name!r:.60}. "
                "Hint: leave it out."
            )
    prompts: Any = getattr(request, "prompt", None)
    several = isinstance(prompts, list) and not (prompts and isinstance(prompts[0], int))
    if several and len(prompts) != 1:
        raise InputError(
            f"Expected one prompt for the voted model, found {len(prompts)}. "
            "Hint: send a call for each."
        )
    fields = _CANNOT | _CANNOT_STREAM if request.stream else _CANNOT
    for name, harmless in fields.items():
        value = getattr(request, name, None)
        if value is not None and not harmless(value):
            raise InputError(
                f"Expected no {name} for the voted model{' in a stream' * (name not in _CANNOT)}, "
                f"found {value!r:.60}. Hint: leave it out, or ask the plain model."
            )
    if getattr(request, "tools", None) and request.tool_choice != "none":
        raise InputError(
            "Expected no tools for the voted model, which votes on answers, found "
            f"{len(request.tools)}. Hint: leave them out, or ask the plain model."
        )


_LABELS = (
    *("metadata", "store", "service_tier", "safety_identifier"),
    *("prompt_cache_key", "prompt_cache_retention"),
)
"""Fields of OpenAI's interface that vLLM does not know and that no answer depends on."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "modalities": (["text"],),
    "functions": ([],),
    "function_call": ("none",),
}
"""Others, and what front ends send in them that asks for nothing."""


def _never(_: Any) -> bool:
    return False


_CANNOT: dict[str, Callable[[Any], bool]] = {
    "n": lambda value: value == 1,
    "logprobs": lambda value: value is False,
    "prompt_logprobs": _never,
    "logprob_token_ids": _never,
    "use_beam_search": lambda value: value is False,
    "response_format": lambda value: value.type == "text",
    "structured_outputs": _never,
    "prompt_embeds": _never,
    "kv_transfer_params": _never,
    "ec_transfer_params": _never,
    "vllm_xargs": lambda value: CONFIG_KEY not in value,
}
"""Fields of a request, and which of their values ask for nothing that a vote cannot give."""
_CANNOT_STREAM: dict[str, Callable[[Any], bool]] = {
    "return_token_ids": lambda value: value is False,
    "return_prompt_text": lambda value: value is False,
    "stream_interval": _never,
    "stream_options": lambda value: not value.continuous_usage_stats,
}


def _check(
    name: str, values: Mapping[str, Any], good: Callable[[Any], bool], expected: str
) -> None:
    value = values.get(name)
    if value is not None and not (_hashable(value) and good(value)):
        raise InputError(
            f"Expected {CONFIG_KEY} option {name} as {expected}, found {value!r:.60}. "
            "Hint: leave it out for the default."
        )


def _hashable(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
