"""What the scheduler keeps of each running trace: its boundaries, their scores, its group.

Plain data, no vLLM import. A token that ends a step is noted when it is sampled (`take_tokens`);
its hidden row, and so its score, comes with the next step that yields a token (`take_scores`). A
trace that was preempted in between computes that row when it resumes, and never a second time. Of
several tokens in one step (accepted drafts) all but the last have their rows in that step already.
"""

import math
from collections.abc import Container, Mapping, Sequence

import numpy as np

from step_infer.confidence import GroupConfidence
from step_infer.counters import Counters
from step_infer.draft_rows import sampling_row, state_row
from step_infer.errors import InputError
from step_infer.scorer.aggregate import RunningScore
from step_infer.scorer.boundary import BoundaryRule, BoundaryState
from step_infer.scorer.confidence_term import ConfidenceTerm
from step_infer.settings import RequestOptions, StepSettings
from step_infer.wire import Report, StepRows


class LiveTrace:
    """A running trace that opted in."""

    __slots__ = (
        "_score",
        "aggregator",
        "boundary_state",
        "capture",
        "confidence_sum",
        "confidences",
        "dropped",
        "group",
        "groups",
        "hidden",
        "min_keep",
        "min_steps",
        "num_tokens",
        "positions",
        "progress",
        "prune",
        "request_id",
        "scores",
        "stop_below",
    )

    def __init__(
        self, request_id: str, options: RequestOptions, settings: StepSettings, aggregator: str
    ) -> None:
        self.request_id = request_id
        self.group = options.group
        self.prune = settings.prune if options.prune is None else options.prune
        self.min_keep = options.min_keep or settings.min_keep
        self.min_steps = options.min_steps or settings.min_steps
        self.aggregator = options.aggregator or aggregator
        self._score = RunningScore(self.aggregator)
        self.capture = options.capture and settings.capture
        self.progress = options.progress
        self.groups: GroupConfidence | None = None
        """The sliding window, where the request asked for one."""
        if options.window is not None:
            if not settings.confidence:
                raise InputError(
                    "Expected step option window with the engine setting confidence only, found "
                    "false. Hint: leave window out, or use StepLLM with confidence=True."
                )
            self.groups = GroupConfidence(options.window)
        self.stop_below = -math.inf if options.stop_below is None else options.stop_below
        self.num_tokens = 0
        self.boundary_state = BoundaryState()
        self.positions: list[int] = []
        self.scores: list[float | None] = []
        self.hidden: list[np.ndarray] = []
        self.dropped = 0
        self.confidence_sum = 0.0
        self.confidences: list[float | None] = []

    @property
    def num_scored(self) -> int:
        """Finite step scores so far."""
        return len(self.scores) - self.dropped

    @property
    def confidence(self) -> float | None:
        """The mean confidence of all tokens so far; None where one was not recorded."""
        mean = self.confidence_sum / self.num_tokens if self.num_tokens else math.nan
        return mean if math.isfinite(mean) else None

    @property
    def score(self) -> float | None:
        """The aggregate of the finite step scores; None without any."""
        return self._score.value

    def add_score(self, score: float) -> None:
        """Take in the next boundary's score; one that is not finite is dropped and counted."""
        if math.isfinite(score):
            self.scores.append(score)
            self._score.add(score)
        else:
            self.scores.append(None)
            self.dropped += 1


class LiveTraces:
    """All running traces that opted in, and the size of their groups.

    A comparison that takes its signals from elsewhere than the worker's rows is a subclass (see
    `step_eval.replay.scheduler`).
    """

    trace_class: type[LiveTrace] = LiveTrace

    def __init__(
        self,
        rule: BoundaryRule,
        aggregator: str,
        settings: StepSettings,
        counters: Counters | None = None,
        confidence_term: ConfidenceTerm | None = None,
    ) -> None:
        self._counters = Counters() if counters is None else counters
        self._rule = rule
        self._aggregator = aggregator
        self._settings = settings
        self._dtype = "bfloat16"
        self.confidence = settings.confidence
        """Whether token confidences are recorded."""
        self._confidence_term = confidence_term
        self.marks: Container[int] = rule.marks
        """Token ids that may end a step; without confidences others need only be counted."""
        self._live: dict[str, int] = {}
        self.traces: dict[str, LiveTrace] = {}
        """Every live trace by its request id."""
        self.pending: dict[str, LiveTrace] = {}
        """Traces whose newest token ends a step that has not been scored yet."""
        self.news: dict[str, float | None] = {}
        """Trace scores that are new in this step, of those that asked for `progress`."""
        self.kept: dict[str, int] = {}
        """For each group with live traces: those, and its traces that finished by themselves with
        something to judge them by."""

    def add(self, request_id: str, options: RequestOptions) -> None:
        """Begin to follow a trace."""
        trace = self.trace_class(request_id, options, self._settings, self._aggregator)
        self.traces[request_id] = trace
        if trace.group is not None:
            self._live[trace.group] = self._live.get(trace.group, 0) + 1
            self.kept[trace.group] = self.kept.get(trace.group, 0) + 1

    def remove(self, request_id: str, survived: bool) -> None:
        """Forget a trace; a group is forgotten with its last live trace.

        One without a step score does not count as kept: nobody knows whether it is worth keeping,
        and a one-token trace would make room for the end of another. Nor does it where traces go
        by their confidence alone, unless it asked for that.
        """
        self.pending.pop(request_id, None)
        self.news.pop(request_id, None)
        trace = self.traces.pop(request_id, None)
        if trace is None or trace.group is None:
            return
        self._live[trace.group] -= 1
        judged = trace.num_scored or (self._settings.scorer is None and trace.groups is not None)
        if not (survived and judged):
            self.kept[trace.group] -= 1
        if self._live[trace.group] == 0:
            del self._live[trace.group], self.kept[trace.group]

    def may_stop(self, trace: LiveTrace) -> bool:
        """Return whether a trace's group is left with enough traces without it."""
        group = trace.group
        return group is None or self.kept[group] > self.min_keeps()[group]

    def min_keeps(self) -> dict[str, int]:
        """Return for each group the most traces that one of its live traces asks to keep.

        Whoever joins a group with a smaller number, or none, must not cost it more traces.
        """
        most: dict[str, int] = {}
        for trace in self.traces.values():
            if trace.group is not None:
                most[trace.group] = max(most.get(trace.group, 0), trace.min_keep)
        return most

    def clear(self) -> None:
        """Forget everything."""
        for table in (self.traces, self.pending, self.news, self.kept, self._live):
            table.clear()  # type: ignore[attr-defined]

    def take_tokens(
        self,
        trace: LiveTrace,
        token_ids: Sequence[int],
        rows: StepRows | None = None,
        request: int = 0,
    ) -> bool:
        """Take in the tokens that a trace got in one step: which end a step, how sure they are.

        Args:
            trace: their trace.
            token_ids: at least one; only the last one's row is still to come.
            rows: the step's rows; None where the worker attached none.
            request: the trace's place in the output's `req_ids`.

        Returns:
            Whether the window was less sure than the request's `stop_below` at one of them.
        """
        self.pending.pop(trace.request_id, None)
        unsure, count = False, len(token_ids)
        first = 0 if rows is None else rows.first_row(request)
        for index, token_id in enumerate(token_ids):
            trace.num_tokens += 1
            if self.confidence:
                confidence = math.nan
                if rows is not None and rows.confidences_B is not None:
                    confidence = float(rows.confidences_B[sampling_row(first, index)])
                unsure |= self._take_confidence(trace, confidence)
            if token_id in self.marks and self._ends_step(trace, token_id):
                row = state_row(first, index, count)
                if row is None:
                    self.pending[trace.request_id] = trace
                else:
                    self._take_boundary(trace, rows, row)
        return unsure

    def _ends_step(self, trace: LiveTrace, token_id: int) -> bool:
        """Return whether a trace's newest token ends a step."""
        return self._rule.ends_step(trace.boundary_state, token_id, trace.num_tokens - 1)

    def take_scores(
        self,
        rows: StepRows | None,
        place_of: Mapping[str, int],
        sampled_token_ids: Sequence[Sequence[int]],
    ) -> None:
        """Give each pending boundary its row's score, if this step yielded a token for it.

        Args:
            rows: the step's scored rows; None where the worker attached none.
            place_of: request id to its place in the output's `req_ids`.
            sampled_token_ids: the step's tokens for each place; a part of a prefill yields none.
        """
        # A pending trace may have no row: it was preempted, or waits for its turn. Its boundary
        # stays pending; the row comes when that token is computed again.
        for request_id in [name for name in self.pending if name in place_of]:
            place = place_of[request_id]
            if len(sampled_token_ids) == 0 or len(sampled_token_ids[place]) == 0:
                continue
            # The first row's input token is the pending boundary only where the step yields a
            # token; the earlier parts of a resumed prefill have rows of other tokens.
            trace = self.pending.pop(request_id)
            self._take_boundary(trace, rows, 0 if rows is None else rows.first_row(place))

    def _take_boundary(self, trace: LiveTrace, rows: StepRows | None, row: int) -> None:
        """Note that a trace's newest token ends a step, whose state is in a row."""
        trace.positions.append(trace.num_tokens - 1)
        if self.confidence:  # of the tokens up to this one
            trace.confidences.append(trace.confidence)
        score = self._score(trace, rows, row)
        trace.add_score(score)
        if trace.progress:
            self.news[trace.request_id] = trace.score
        if math.isfinite(score):
            self._counters.score(score)
        elif self._settings.scorer or (rows is not None and rows.scores_B is not None):
            self._counters.drop()
        if trace.capture and rows is not None and rows.hidden_BH is not None:
            self._dtype = rows.dtype
            trace.hidden.append(rows.hidden_BH[row].copy())

    def _score(self, trace: LiveTrace, rows: StepRows | None, row: int) -> float:
        """Return the score of a trace's newest boundary; NaN where the worker gave none."""
        score = math.nan if rows is None or rows.scores_B is None else float(rows.scores_B[row])
        term = self._confidence_term
        return score if term is None else term.score(score, trace.confidence)

    def _take_confidence(self, trace: LiveTrace, confidence: float) -> bool:
        """Take in the confidence of a trace's newest token, NaN where unknown.

        Returns:
            Whether its window is less sure than the request's `stop_below`.
        """
        trace.confidence_sum += confidence
        if trace.groups is None:
            return False
        group = trace.groups.add(confidence)
        return group is not None and group < trace.stop_below

    def report(self, trace: LiveTrace) -> Report:
        """Return what the client gets of a trace."""
        report: Report = {
            "positions": trace.positions,
            "scores": trace.scores,
            "score": trace.score,
            "pruned": False,
        }
        if self.confidence:
            report["confidences"] = trace.confidences
            report["confidence"] = trace.confidence
        if trace.groups is not None:
            report["lowest_confidence"] = trace.groups.lowest
        if trace.capture:
            report["hidden"] = b"".join(row.tobytes() for row in trace.hidden)
            report["hidden_dtype"] = self._dtype
        return report
