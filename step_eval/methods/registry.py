"""The methods that can be compared: each is a way to start the engine and a way to vote."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from step_eval.methods.deepconf import CONSENSUS_SHARE, HIGH, LOW, DeepConf
from step_eval.methods.slim_sc import SlimSC
from step_eval.methods.victims import ABLATIONS, VICTIM_SCHEDULER
from step_infer.client.branching import Branching
from step_infer.client.deciding import CONSENSUS, LIKELY, NEVER, UNBEATABLE
from step_infer.client.llm import StepLLM
from step_infer.client.trace import Trace, TracePlan
from step_infer.errors import InputError


class MethodSettings(Protocol):
    """What methods take from the settings of an evaluation or a replay."""

    @property
    def scorer(self) -> str | None: ...  # noqa: D102
    @property
    def aggregator(self) -> str | None: ...  # noqa: D102
    @property
    def min_keep(self) -> int: ...  # noqa: D102
    @property
    def min_steps(self) -> int: ...  # noqa: D102
    @property
    def confidence(self) -> bool: ...  # noqa: D102
    @property
    def allow_mismatch(self) -> list[str]: ...  # noqa: D102
    @property
    def warmup(self) -> int: ...  # noqa: D102
    @property
    def window(self) -> int: ...  # noqa: D102
    @property
    def slim(self) -> SlimSC: ...  # noqa: D102
    @property
    def branch(self) -> Branching: ...  # noqa: D102


Sampler = Callable[[StepLLM, Sequence[TracePlan], Callable[[], None]], Iterator[Trace]]
"""Samples the traces of one question: the engine, their orders, what to call after each step."""


@dataclass(frozen=True)
class Method:
    """One way to answer a question with N traces."""

    label: str
    """Its name in tables and pictures."""
    about: str
    """What it does, one line."""
    vote: str
    """Vote rule, where the user names none."""
    engine_options: Callable[[MethodSettings], dict[str, Any]]
    """Arguments of `StepLLM` beyond model, KV budget and the user's engine arguments."""
    needs_scorer: bool = False
    sampler: Callable[[MethodSettings], Sampler] | None = None
    """How a question's traces are sampled; None hands all of them to the engine at once."""
    settings: tuple[str, ...] = ()
    """Settings that decide its records, beside those of every method."""
    no_replay: str | None = None
    """Why recorded traces cannot be replayed under it; None where they can."""
    needs_confidence: bool = False
    """Whether it goes by token confidences: then a replay needs recorded ones."""
    traces: int | None = None
    """Traces of a question, the first ones of `num_traces`; None takes all."""
    decided_by: str = UNBEATABLE
    """The stop rule of the suffix `+decided`."""
    stop_rule: str = NEVER
    """When a question's vote is decided, and its other traces end."""
    wave: int | None = None
    """Traces of a question that run at once; None: all."""


def _stock(config: MethodSettings) -> dict[str, Any]:
    return {"plain": True}


def _step(config: MethodSettings) -> dict[str, Any]:
    return {
        "scorer": config.scorer,
        "prune": True,
        "aggregator": config.aggregator,
        "min_keep": config.min_keep,
        "min_steps": config.min_steps,
        "confidence": config.confidence,
        "allow_mismatch": tuple(config.allow_mismatch),
    }


def _ablation(victim: str) -> Callable[[MethodSettings], dict[str, Any]]:
    # The choice by confidence has to record it.
    confidence = {"confidence": True} if victim == "least-confident" else {}
    engine = {
        "scheduler_cls": VICTIM_SCHEDULER,
        "additional_config": {"step_eval": {"victim": victim}},
    }
    return lambda config: _step(config) | engine | confidence


def _confidence(config: MethodSettings) -> dict[str, Any]:
    return {"confidence": True, "min_keep": config.min_keep}


def _branch(at_random: bool) -> Callable[[MethodSettings], Sampler]:
    return lambda config: partial(config.branch.stream, at_random=at_random)


def _slim_sc(config: MethodSettings) -> Sampler:
    return partial(config.slim.stream, min_keep=config.min_keep)


def _deepconf(percentile: float) -> Callable[[MethodSettings], Sampler]:
    return lambda config: DeepConf(percentile, config.warmup, config.window).stream


_STEP_SETTINGS = ("aggregator", "min_keep", "min_steps", "confidence")
_NO_CHILDREN = "its children go on from a parent's tokens, which no recorded trace did"

METHODS: dict[str, Method] = {
    "sc": Method(
        "SC",
        "self-consistency: every trace runs to its end on stock vLLM, each has one vote",
        "uniform",
        _stock,
    ),
    "step": Method(
        "STEP",
        "when the KV cache is about to overflow, the trace of the lowest score is stopped; "
        "the others vote by their scores",
        "score",
        _step,
        needs_scorer=True,
        settings=_STEP_SETTINGS,
    ),
    "deepconf-low": Method(
        "DeepConf-low",
        "traces that follow a warm-up are stopped when their token confidence falls below that of "
        "the warm-up's top 10 %; those that do not fall below it vote by their confidence",
        "lowest-confidence",
        _confidence,
        sampler=_deepconf(LOW),
        decided_by=CONSENSUS,
        needs_confidence=True,
        settings=("min_keep", "warmup", "window"),
    ),
    "deepconf-high": Method(
        "DeepConf-high",
        "like DeepConf-low with the warm-up's top 90 %",
        "lowest-confidence",
        _confidence,
        sampler=_deepconf(HIGH),
        decided_by=CONSENSUS,
        needs_confidence=True,
        settings=("min_keep", "warmup", "window"),
    ),
    "slim-sc": Method(
        "Slim-SC",
        "of two running traces whose latest thoughts are alike, one is stopped; each of the others "
        "has one vote",
        "uniform",
        _stock,
        sampler=_slim_sc,
        settings=("min_keep", "slim"),
        no_replay="it looks at the text of traces, and a replay has none",
    ),
    **{
        name: Method(
            label,
            f"STEP, and where a trace was stopped and memory is free, {parent} goes on as a "
            "further trace too",
            "score",
            _step,
            needs_scorer=True,
            sampler=_branch(at_random),
            settings=(*_STEP_SETTINGS, "branch"),
            no_replay=_NO_CHILDREN,
        )
        for name, label, parent, at_random in (
            ("branch", "branching", "the trace of the highest score", False),
            ("branch-random", "random branching", "a random trace", True),
        )
    },
    "single": Method(
        "single trace",
        "the first trace of each question, on stock vLLM: what one trace costs, and how often it "
        "is right",
        "uniform",
        _stock,
        traces=1,
    ),
    **{
        name: Method(
            ablation.label,
            f"STEP, but it is {ablation.about} that is stopped; the others vote by their scores",
            "score",
            _ablation(ablation.victim),
            needs_scorer=True,
            settings=_STEP_SETTINGS,
            needs_confidence=name == "least-confident",
        )
        for name, ablation in ABLATIONS.items()
    },
}
"""All methods by the name that `step-eval --methods` takes. The first is the baseline."""

BASELINE = "sc"
ALL = "all"
"""Stands for every method."""


DECIDED_SUFFIX, LIKELY_SUFFIX = "+decided", "+likely"
_SUFFIXES = re.compile(r"(?P<rule>\+decided|\+likely)(?P<wave>\+wave[1-9]\d*)?")
_RULE_WORDS = {
    UNBEATABLE: "no other answer can win any more",
    LIKELY: "it is improbable that another answer wins",
    CONSENSUS: f"one answer has {CONSENSUS_SHARE:.0%} of the weight",
}


def base_name(name: str) -> str:
    """Return the name of the method that another one is with a suffix; of the others their own."""
    return name.partition("+")[0]


def find_method(name: str) -> Method:
    """Return the method of a name of `METHODS`, perhaps with suffixes.

    `+decided` ends a question as soon as its vote is decided, `+likely` as soon as that is likely;
    after one of them, `+waveK` runs at most K traces of a question at once.

    Raises:
        KeyError: there is no such method.
    """
    base = METHODS[base_name(name)]
    suffixes = name.removeprefix(base_name(name))
    if not suffixes:
        return base
    found = _SUFFIXES.fullmatch(suffixes)
    if found is None:
        raise KeyError(name)
    likely = found["rule"] == LIKELY_SUFFIX
    rule = LIKELY if likely else base.decided_by
    wave = int(found["wave"].removeprefix("+wave")) if found["wave"] else None
    about = f"{base.about}; a question ends as soon as {_RULE_WORDS[rule]}"
    if wave is not None:
        about += f"; at most {wave} of its traces run at once"
    return replace(
        base,
        label=base.label + suffixes,
        about=about,
        needs_scorer=base.needs_scorer or likely,
        stop_rule=rule,
        wave=wave,
    )


def method_order(names: Iterable[str]) -> list[str]:
    """Return names of methods in the registry's order, each before those with its suffixes."""
    order = list(METHODS)
    return sorted(names, key=lambda name: (order.index(base_name(name)), name))


def method_names(text: str) -> list[str]:
    """Split "sc,step" into names of methods; "all" is every one.

    Raises:
        InputError: none is named, one is unknown, or one is named twice.
    """
    if text.strip() == ALL:
        return list(METHODS)
    names = [name.strip() for name in text.split(",") if name.strip()]
    known = ", ".join([*METHODS, ALL])
    if not names:
        raise InputError(f"Expected --methods out of {known}, found none.")
    for name in names:
        try:
            method = find_method(name)
        except KeyError:
            raise InputError(
                f"Expected --methods out of {known}, found {name!r}. Hint: {DECIDED_SUFFIX} or "
                f"{LIKELY_SUFFIX} may follow a name, and +waveK one of them."
            ) from None
        if method.wave is not None and method.sampler is not None:
            raise InputError(
                f"Expected a method that starts its traces all at once before +wave, found "
                f"{base_name(name)}. Hint: sc and step do."
            )
    if len(set(names)) < len(names):
        raise InputError(f"Expected each method once in --methods, found {text!r}.")
    return names
