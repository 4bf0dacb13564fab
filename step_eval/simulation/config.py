"""Settings of `step-eval simulate`."""

import os
from dataclasses import dataclass, field
from typing import Any, ClassVar

from step_eval.config import PruningOptions
from step_eval.methods.registry import DECIDED_SUFFIX, LIKELY_SUFFIX, base_name
from step_eval.methods.victims import ABLATIONS
from step_eval.simulation.drawn import DrawnTraces
from step_eval.votes import UNIFORM, vote_signal
from step_infer.cli.options import check_at_least
from step_infer.client.deciding import (
    LEAST_VOTES,
    LIKELY,
    NEVER,
    UNBEATABLE,
    StopRule,
    likely_rule,
)
from step_infer.errors import InputError
from step_infer.scorer.card import read_card

AUROC_AT = 0.5
"""Part of a trace at which a made-up scorer has the AUROC asked for."""

METHODS = {
    "sc": ("SC", "every trace runs to its end; one vote each"),
    "sc-score": ("SC, score vote", "SC's schedule; votes weighted by score: nothing is stopped"),
    "step": ("STEP", "the lowest-scored trace is stopped; votes weighted by score"),
    **{
        name: (ablation.label, f"STEP's trigger and vote, but it stops {ablation.about}")
        for name, ablation in ABLATIONS.items()
    },
}
"""What can be simulated: label, and what it does."""


def method_label(name: str) -> str:
    """Return a method's name for tables."""
    base = base_name(name)
    return METHODS[base][0] + name.removeprefix(base)


@dataclass(frozen=True)
class SimulateConfig(PruningOptions):
    """Everything that `step-eval simulate` can be told."""

    MAIN_OPTIONS: ClassVar = (
        "out",
        "traces",
        "scorer",
        "methods",
        "num_traces",
        "kv_budget",
        "length_scale",
        "auroc",
        "timing",
        "limit",
        "check",
    )

    out: str
    """Directory for simulation.json and simulation.html."""
    traces: str | None = None
    """Recorded traces: a directory of step-collect, or of step-eval with the method sc, or the
    Parquet file of `step-eval record`. Without it, --limit questions (200) are drawn
    from distributions (--drawn.*)."""
    scorer: str | None = None
    """Scorer file for the hidden states stored with --traces; it is simulated beside the made-up
    scorers of --auroc."""
    drawn: DrawnTraces = field(default_factory=DrawnTraces)
    """The distributions that traces are drawn from."""
    methods: str = "sc,sc-score,step"
    """Methods, separated by commas: sc; sc-score, which only votes by score; step; and as victims
    of STEP's trigger: random, youngest, longest, least-confident (needs recorded confidences),
    oracle. With +decided after a name, a question ends as soon as its vote is decided; with +likely
    as soon as that is likely (--likely-threshold)."""
    num_traces: list[int] = field(default_factory=lambda: [64])
    """Traces N for each question, one or more sizes."""
    kv_budget: list[float] = field(default_factory=lambda: [0.25, 0.5, 1.0])
    """KV cache as a part of what all traces of a mean question need, one or more sizes."""
    length_scale: list[float] = field(default_factory=lambda: [1.0])
    """Factors on the length of every response."""
    auroc: list[float] = field(default_factory=lambda: [0.5, 0.6, 0.7, 0.8, 0.9])
    """Within-question AUROC of made-up scorers half-way through a trace, in [0.5, 0.99]."""
    limit: int | None = None
    """Use only so many questions from the start."""
    vote: str = "score"
    """How traces vote under every method but sc: uniform, score, score^POWER, score-top-K or
    best."""
    likely_threshold: float | None = None
    """Chance that the leading answer wins at which methods with +likely stop; none given, the one
    that step-eval calibrate wrote into the card of --scorer."""
    block_size: int = 16
    """Tokens of a KV block; vLLM's own is 16 on CUDA, 32 with StepLLM on CPU."""
    max_num_seqs: int = 256
    """Traces that run at once."""
    max_num_batched_tokens: int = 8192
    """Tokens that a step computes at most."""
    timing: str | None = None
    """Cost of an engine step: STEP,ROW,KV,PREFILL and, where it scores, SCORING in seconds, or a
    directory of step-eval whose methods sc and step they are fitted on. Without it, time is counted
    in engine steps."""
    check: str | None = None
    """Directory of step-eval with methods sc and step on the questions of --traces: each of its
    questions is simulated, and the error is reported. Needs --traces with the same seeds, and the
    scorer's step scores: recorded with them, or by --scorer."""
    seed: int = 0
    """Of all that is drawn."""
    jobs: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Processes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, self, "limit", "block_size", "jobs")
        for name, low, high in (
            ("num_traces", 1, 100_000),
            ("kv_budget", 0.01, 4),
            ("length_scale", 0.001, 1000),
            ("auroc", 0.5, 0.99),
        ):
            values: list[Any] = getattr(self, name)
            bad = [value for value in values if not low <= value <= high]
            if bad or (not values and name != "auroc"):
                found = bad[0] if bad else "none"
                raise InputError(f"Expected {_option(name)} in [{low}, {high}], found {found}.")
        for name in self.method_names:
            base = base_name(name)
            suffix = name.removeprefix(base)
            if base in ("branch", "branch-random"):
                raise InputError(
                    f"Expected methods that recorded traces can tell of, found {name!r}: its "
                    "children go on from a parent's tokens, which no recorded trace did. Hint: "
                    "compare it with step-eval, on an engine."
                )
            if base not in METHODS or suffix not in ("", DECIDED_SUFFIX, LIKELY_SUFFIX):
                raise InputError(
                    f"Expected --methods out of {', '.join(METHODS)}, found {name!r}. "
                    f"Hint: {DECIDED_SUFFIX} or {LIKELY_SUFFIX} may follow a name."
                )
        if self.likely_threshold is not None:
            StopRule(LIKELY, self.likely_threshold)
        if vote_signal(self.vote) not in (None, "score"):
            raise InputError(
                f"Expected a --vote that goes by scores or is uniform, found {self.vote!r}: "
                "nothing else is simulated."
            )
        if self.scorer is not None and self.traces is None:
            raise InputError(
                "Expected --traces beside --scorer, found none. "
                "Hint: --traces takes a directory of step-collect with features."
            )
        if self.check is not None and self.traces is None:
            raise InputError(
                "Expected --traces beside --check, found none. "
                "Hint: give those of the run, or leave --check out."
            )

    @property
    def method_names(self) -> list[str]:
        """The methods, sc first: the others are compared with it."""
        names = [name.strip() for name in self.methods.split(",") if name.strip()]
        return ["sc", *(name for name in dict.fromkeys(names) if name != "sc")]

    def stop_rule(self, method: str) -> StopRule:
        """Return when a method's traces end because the vote is decided.

        Raises:
            InputError: there is no threshold for +likely, or the scorer file cannot be read.
        """
        if method.endswith(DECIDED_SUFFIX):
            return StopRule(UNBEATABLE)
        if not method.endswith(LIKELY_SUFFIX):
            return StopRule(NEVER)
        if self.likely_threshold is not None:
            return StopRule(LIKELY, self.likely_threshold, LEAST_VOTES)
        card = None if self.scorer is None else read_card(self.scorer)
        vote_by = UNIFORM if base_name(method) == "sc" else self.vote
        return likely_rule({} if card is None else card.deciding, vote_by)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
