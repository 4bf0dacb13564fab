"""One sampled response, the order for one, and how it is sampled."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from step_infer.client.answers import extract_boxed
from step_infer.client.running_vote import RunningVote
from step_infer.errors import InputError
from step_infer.wire import CLOSED_REASONS, CONFIDENCE, PRUNED

if TYPE_CHECKING:
    import torch


_WHOLE = ("top_k", "max_tokens")


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters; the defaults are the paper's (arXiv 2601.09093, section 4.1)."""

    temperature: float = 0.6
    """Softmax temperature; 0 is greedy."""
    top_p: float = 0.95
    """Nucleus: smallest set of tokens with this probability."""
    top_k: int = 20
    """Most likely tokens kept; 0 keeps all."""
    max_tokens: int = 65536
    """Longest response in tokens; cut to what the model's context leaves after the prompt."""

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "top_k", "max_tokens"):
            value = getattr(self, name)
            kind, kinds = (int, "whole numbers") if name in _WHOLE else (int | float, "numbers")
            if not isinstance(value, kind):
                raise InputError(f"Expected {name} out of {kinds}, found {value!r}.")
        for name, value, good in (
            ("temperature", self.temperature, self.temperature >= 0),
            ("top_p", self.top_p, 0 < self.top_p <= 1),
            ("top_k", self.top_k, self.top_k >= 0),
            ("max_tokens", self.max_tokens, self.max_tokens >= 1),
        ):
            if not good:
                bounds = {"temperature": ">= 0", "top_p": "in (0, 1]", "top_k": ">= 0"}
                raise InputError(f"Expected {name} {bounds.get(name, '>= 1')}, found {value}.")


TraceKey = tuple[str, int]
"""A question's id and the number of one of its traces."""
SIMILAR = "similar"
"""The finish reason of a trace whose thoughts another one had."""
PRUNED_REASONS = (PRUNED, CONFIDENCE, SIMILAR)
"""The finish reasons of traces that a method stopped for what they were."""
STOPPED = (*PRUNED_REASONS, *CLOSED_REASONS)
"""The finish reasons of all traces that were stopped."""


@dataclass(frozen=True)
class Inherited:
    """What a branch takes from its parent: T generated tokens, the last one a step boundary."""

    parent: int
    """Number of the parent among the question's traces."""
    token_ids: tuple[int, ...]
    """The parent's generated tokens up to the branch point [T], inherited ones first."""
    scores: tuple[float | None, ...]
    """The step scores of their S boundaries [S]."""
    confidences: tuple[float | None, ...] = ()
    """The mean token confidence up to each boundary [S], where it is recorded."""


@dataclass(frozen=True)
class TracePlan:
    """The order for one trace."""

    question_id: str
    trace_id: int
    """Number of the trace within its question, from 0."""
    prompt_token_ids: tuple[int, ...]
    seed: int | None
    """Sampling seed of the trace; None takes the engine's own, which is not repeatable."""
    sampling: Sampling
    group: str | None = None
    """Traces of one group compete with each other when memory is short; None is not prunable."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What else its request asks of the adapter (`step_infer.settings.RequestOptions`), such as
    `window` and `stop_below`; stock vLLM gets none of it."""
    vote: RunningVote | None = field(default=None, compare=False, repr=False)
    """Its question's vote, which may end the trace, or keep it from beginning."""
    extract: Callable[[str, str | None], str | None] = field(
        default=extract_boxed, compare=False, repr=False
    )
    """Finds its answer, given its text and what ends the thinking, such as `Grader.extract`."""
    inherited: Inherited | None = field(default=None, repr=False)
    """What it takes from the trace that it branches from; None for a trace of its own."""

    @property
    def key(self) -> TraceKey:
        """What tells it from other orders."""
        return self.question_id, self.trace_id


@dataclass
class Trace:
    """One sampled response of T generated tokens and S scored steps."""

    question_id: str
    trace_id: int
    seed: int | None
    prompt_token_ids: list[int]
    token_ids: list[int]
    """Generated tokens [T]."""
    text: str
    """Their text, special tokens included."""
    finish_reason: str
    """"stop", "length", "abort", or, if it was stopped: "pruned" for want of memory, "confidence"
    for a window of low confidence, "similar" for thoughts that another trace had, "decided" when
    the vote did not need it any more, "over_budget" when its question's budget was spent. Of the
    last two some never began: they have no tokens."""
    answer: str | None = None
    r"""What its order's `extract` found, by default the content of the last \boxed{}; None for a
    trace that was stopped."""
    boundary_positions: list[int] = field(default_factory=list)
    """Indices of the step boundaries in `token_ids` [S]."""
    step_scores: list[float | None] = field(default_factory=list)
    """A score in [0, 1] for each boundary [S]; None where not finite; empty if unscored."""
    trace_score: float | None = None
    """Aggregate of the step scores; None without any."""
    step_confidences: list[float | None] | None = None
    """For each boundary the mean token confidence of the tokens up to and including it [S]
    (`step_infer.row_scorer`); None where not recorded."""
    mean_token_confidence: float | None = None
    """Mean token confidence of all generated tokens; None where not recorded."""
    lowest_group_confidence: float | None = None
    """Mean token confidence of its least sure window (option `window`); None without one."""
    filtered: bool = False
    """Whether it ended by itself but does not vote: its lowest group confidence is too low."""
    hidden_SH: "torch.Tensor | None" = None
    """Hidden states at the boundaries [S, H], as the model gave them, where they were captured."""
    submitted_s: float = 0.0
    """When the trace was handed to the engine, seconds of `time.monotonic()`."""
    finished_s: float = 0.0
    """When its last token arrived, seconds of `time.monotonic()`."""
    parent: int | None = None
    """Number of the trace that it branches from; None for a trace of its own."""
    inherited: int = 0
    """How many of its first tokens are its parent's: counted there, and not here."""
    cached_tokens: int | None = None
    """Tokens of its prompt and of what it inherited that the prefix cache had; None unless it
    branches from another."""

    @property
    def own_tokens(self) -> int:
        """Tokens that it generated itself."""
        return len(self.token_ids) - self.inherited

    @property
    def pruned(self) -> bool:
        """Whether the trace was stopped for want of memory."""
        return self.finish_reason == "pruned"

    @property
    def stopped(self) -> bool:
        """Whether the trace was stopped, for whatever reason: it has no answer."""
        return self.finish_reason in STOPPED


def trace_seed(seed: int, question_id: str, trace_id: int) -> int:
    """Return a trace's own sampling seed (31 bits), the same on every machine."""
    digest = hashlib.sha256(f"{seed}\0{question_id}\0{trace_id}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def branch_seed(seed: int, number: int) -> int:
    """Return the seed (31 bits) of a trace's child, given the trace's own and how many it had."""
    digest = hashlib.sha256(f"{seed}\0branch\0{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


UNSCORED = 0.5
"""The weight of a trace that ended before its first step did, among scored ones: right or wrong, as
a score of 0.5 says. Were it 1, such a trace would outvote several that were scored."""


def trace_weight(trace: Trace) -> float:
    """Return a trace's weight in a vote, 0 for one that was stopped or filtered.

    It is the lowest group confidence where that was looked at, else the score, else `UNSCORED`.
    """
    if trace.stopped or trace.filtered:
        return 0.0
    if trace.lowest_group_confidence is not None:
        return trace.lowest_group_confidence
    return UNSCORED if trace.trace_score is None else trace.trace_score


def one_each(trace: Trace) -> float:
    """Return a trace's weight where nothing scores them, 0 for one that was stopped or filtered."""
    return 0.0 if trace.stopped or trace.filtered else 1.0


def in_waves(questions: Iterable[Sequence[TracePlan]], wave: int) -> Iterator[TracePlan | None]:
    """Order the traces of several questions so that at most `wave` of each run at once.

    A question's next trace comes when fewer run and its vote is open; while all running questions
    are full, the next question begins. None stands for nothing just now (`StepLLM.stream`).

    Args:
        questions: the orders of each question, which have a vote.
        wave: traces of a question that run at once.
    """
    coming = iter(questions)
    begun: list[deque[TracePlan]] = []
    while True:
        begun = [plans for plans in begun if plans]
        ready = next((plans for plans in begun if _may_begin(plans[0], wave)), None)
        if ready is not None:
            yield ready.popleft()
        elif (following := next(coming, None)) is not None:
            begun.append(deque(following))
        elif begun:
            yield None
        else:
            return


def _may_begin(order: TracePlan, wave: int) -> bool:
    return order.vote is None or order.vote.closed is not None or order.vote.running < wave
