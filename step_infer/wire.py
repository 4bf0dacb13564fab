"""What passes between the worker, the scheduler and the client: every name and form, in one place.

    worker  --StepRows-->  scheduler  --Report-->  client
            <--mark of an unscored step--

The worker attaches a step's rows to vLLM's `ModelRunnerOutput`; the scheduler attaches each ended
trace's report to vLLM's `EngineCoreOutput`, as `kv_transfer_params["step"]`, which reaches
`RequestOutput.kv_transfer_params` offline and the field of that name in an OpenAI response.
Plain data: neither torch nor vLLM is loaded here.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import numpy as np

CONFIG_KEY = "step"
"""Key in the engine's `additional_config`, in a request's `extra_args`, and in what comes back."""
CALLER_KEY = "step_caller"
"""Key in a request's `extra_args` of the mark of who sent it (`step_infer.server.callers`)."""

ROWS_ATTRIBUTE = "step_rows"
"""Attribute of a `ModelRunnerOutput` that carries its `StepRows`."""
UNSCORED_ATTRIBUTE = "step_unscored"
"""Attribute, true, of a `SchedulerOutput` whose rows nobody asks for."""
COUNTS_PREFIX = "step:"
"""What the JSON of new counts begins with, in the one text of `SchedulerStats` that is free."""

PRUNED = "pruned"
"""`stop_reason` of a trace that was stopped for want of memory; its `finish_reason` is "abort"."""
CONFIDENCE = "confidence"
"""`stop_reason` of one whose group confidence fell below the request's `stop_below`."""

DECIDED = "decided"
"""Why a client ends a trace: the vote of its question is decided without it."""
OVER_BUDGET = "over_budget"
"""Why a client ends a trace: its question has used up its budget."""
CLOSED_REASONS = (DECIDED, OVER_BUDGET)
"""Why traces end because their question did."""
_WHY = "\0step:"


def because(reason: str, request_ids: Iterable[str]) -> list[str]:
    """Return request ids as an abort that says why carries them, between two marks.

    vLLM's aborts are lists of ids, which it may join; an id that it does not know it passes over.
    """
    return [_WHY + reason, *request_ids, _WHY]


def told_apart(request_ids: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Return the ids of an abort without its marks, and why, for those of which that is said."""
    ids, why, reason = [], {}, ""
    for request_id in request_ids:
        if request_id.startswith(_WHY):
            reason = request_id.removeprefix(_WHY)
            continue
        ids.append(request_id)
        if reason:
            why[request_id] = reason
    return ids, why


@dataclass
class StepRows:
    """What a step's `ModelRunnerOutput` carries to the scheduler; rows follow its `req_ids`.

    B rows, one for each scheduled request and one for each token drafted for it
    (`step_infer.draft_rows`); H hidden size.
    """

    scores_B: np.ndarray | None
    """Step scores float32 [B]; None without a scorer."""
    hidden_BH: np.ndarray | None = None
    """Hidden states as 16-bit patterns uint16 [B, H]; None unless captured."""
    dtype: str = "bfloat16"
    """Torch type of `hidden_BH`'s patterns."""
    confidences_B: np.ndarray | None = None
    """Confidences float32 [B] of the tokens sampled from the rows; None unless asked for.

    Mind that a row's score and state belong to its input token, the one before."""
    first_rows: np.ndarray | None = None
    """With drafts, where each request's rows begin, and the number of rows; None: one row each."""
    failed: bool = False
    """Scoring failed in the worker, in this step or before; then there are no rows."""

    @property
    def count(self) -> int:
        """The number of rows B."""
        columns = (self.scores_B, self.hidden_BH, self.confidences_B)
        return next((len(column) for column in columns if column is not None), 0)

    def first_row(self, request: int) -> int:
        """Return the first row of the request at a place in `req_ids`."""
        return request if self.first_rows is None else int(self.first_rows[request])


class ChoiceReport(TypedDict):
    """One choice of a request with n > 1; with stop strings the two lists may be missing."""

    index: int
    """Number of the choice in the response."""
    score: float | None
    pruned: bool
    positions: NotRequired[list[int]]
    scores: NotRequired[list[float | None]]
    confidences: NotRequired[list[float | None]]
    confidence: NotRequired[float | None]
    lowest_confidence: NotRequired[float | None]


class Report(TypedDict):
    """What the client gets of a trace of S scored steps beside its text."""

    positions: list[int]
    """Indices of the step boundaries among the generated tokens, ascending [S]."""
    scores: list[float | None]
    """Their step scores, in (0, 1) [S]; None where one was not finite."""
    score: float | None
    """The trace score: the aggregate of the finite step scores; None before the first."""
    pruned: bool
    """Whether the trace was stopped for want of memory."""
    confidences: NotRequired[list[float | None]]
    """With the setting `confidence`: for each boundary the mean token confidence up to and
    including it [S]."""
    confidence: NotRequired[float | None]
    """With the setting `confidence`: the mean token confidence of all tokens."""
    lowest_confidence: NotRequired[float | None]
    """With the option `window`: the mean token confidence of the least sure window."""
    hidden: NotRequired[bytes]
    """With the option `capture`: hidden states at the boundaries, 16-bit patterns [S, H]."""
    hidden_dtype: NotRequired[str]
    """Torch type of these patterns."""
    index: NotRequired[int]
    """With n > 1: the number of the choice that ended last, whose report this is."""
    choices: NotRequired[list[ChoiceReport]]
    """With n > 1: a report of every choice, in their order."""


class ScoreSoFar(TypedDict):
    """What an output on the way carries after a new step score, with the option `progress`.

    With `branch` all of it, else the trace score alone.
    """

    score: float | None
    """The trace score as of now."""
    positions: NotRequired[list[int]]
    """The boundaries so far, as in `Report`."""
    scores: NotRequired[list[float | None]]
    """Their step scores."""
    spare_tokens: NotRequired[int]
    """KV cache that is free, beyond what must be before waiting traces of a pruned group start, in
    tokens; less than 0 where less is free."""
    confidences: NotRequired[list[float | None]]
    """With the setting `confidence`: as in `Report`, at these boundaries."""


class Refusal(TypedDict):
    """What the client gets instead of a `Report` of an opt-in that cannot be used."""

    error: str
    """One line: what was expected of the option, and what was found."""
