"""The vote of one question while its traces run: what `decide` needs to know, and what it said."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from step_infer.client.deciding import (
    LIKELY,
    NEVER,
    UNBEATABLE,
    Ballot,
    Budget,
    Decision,
    Open,
    StopRule,
    decide,
)
from step_infer.client.grading import Grader
from step_infer.wire import DECIDED, OVER_BUDGET


class EndedTrace(Protocol):
    """What a vote takes of a trace that has ended."""

    trace_id: int
    answer: str | None
    filtered: bool

    @property
    def stopped(self) -> bool:
        """Whether it was stopped, and so has no vote."""


class RunningVote:
    """Takes the traces of one question as they end, and says when the others need not go on.

    Whoever runs the traces calls `begin`, `see` and `check`; whoever votes calls `add`.
    """

    def __init__(
        self,
        trace_ids: Iterable[int],
        weigh: Callable[[Any], float],
        most: float = 1.0,
        rule: StopRule | None = None,
        budget: Budget | None = None,
        grader: Grader | None = None,
        expect: Callable[[float], float] | None = None,
        falls: bool = False,
    ) -> None:
        """Begin with no votes.

        Args:
            trace_ids: all traces of the question, begun or not.
            weigh: the weight of an ended trace's vote. It is asked anew before each decision, as is
                `filtered`: a method may filter traces after they have ended.
            most: the most that one vote can weigh; infinity without a bound.
            rule: when the vote is decided; None: unbeatable.
            budget: what the question may cost; None: no limit.
            grader: compares answers, beside the engine; None takes equal text for equal answers.
            expect: the weight that a running trace's vote would have by its trace score so far;
                None where votes do not go by scores.
            falls: whether a trace score never rises (`NEVER_RISE`): a running trace's vote then
                weighs at most what it would by its score so far.
        """
        self._trace_ids = dict.fromkeys(trace_ids)
        self._weigh, self._most = weigh, most
        self._rule, self._budget = rule or StopRule(), budget or Budget()
        self._grader, self._expect, self._falls = grader, expect, falls
        self._pending: set[str] = set()
        self._ended: dict[int, EndedTrace] = {}
        self._expected: dict[int, float] = {}
        self._equal: dict[tuple[str, str], bool] = {}
        self._tokens: dict[int, int] = {}
        self._running: set[int] = set()
        self.began_s: float | None = None
        """When its first trace began, seconds of `time.monotonic()`."""
        self.closed: str | None = None
        """Why its traces need not go on: `DECIDED` or `OVER_BUDGET`; None while they must."""
        self.why: str | None = None
        """The rule that decided, or the limit that was reached."""
        self.decision: Decision | None = None

    @property
    def watches(self) -> bool:
        """Whether `see` must be called for running traces."""
        by_score = self._expect is not None and self._rule.name == UNBEATABLE and self._falls
        return by_score or self._rule.name == LIKELY or self._budget.tokens is not None

    @property
    def compares(self) -> bool:
        """Whether some answers are being compared, after which `check` asks."""
        return bool(self._pending)

    @property
    def running(self) -> int:
        """Traces that have begun and not ended."""
        return len(self._running)

    def begin(self, trace_id: int, now_s: float) -> None:
        """Note that a trace begins, at a time of `time.monotonic()`.

        One that is not among the question's branches from another. No trace branches once the vote
        is closed, so a decision reckons with those that have begun.
        """
        self._running.add(trace_id)
        self._trace_ids.setdefault(trace_id)
        if self.began_s is None:
            self.began_s = now_s

    def see(self, trace_id: int, tokens: int, score: float | None = None) -> None:
        """Note a running trace's generated tokens so far, and its trace score where it is new."""
        self._tokens[trace_id] = tokens
        if score is not None and self._expect is not None:
            self._expected[trace_id] = self._expect(score)

    def add(self, trace: EndedTrace) -> None:
        """Take in a trace that has ended, by itself or not."""
        self._ended[trace.trace_id] = trace
        self._running.discard(trace.trace_id)
        if self._grader is not None and trace.answer is not None:
            self._grader.submit(trace.answer, self._voting().values(), in_vote=True)
        self._decide()

    def check(self, now_s: float) -> str | None:
        """Look at the budget, and at answers that have been compared; return `closed`."""
        if self.closed is not None:
            return self.closed
        if self._grader is not None and self._pending:
            self._grader.poll()
            if self._grader.pending(self._pending) != self._pending:
                self._decide()
        if self.closed is None and self.began_s is not None:
            self.why = self._budget.spent(now_s - self.began_s, sum(self._tokens.values()))
            if self.why is not None:
                self.closed = OVER_BUDGET
        return self.closed

    def _decide(self) -> None:
        if self.closed is not None or self._rule.name == NEVER:
            return
        others = [
            Open.running(trace_id, self._most, self._expected.get(trace_id), self._falls)
            for trace_id in self._trace_ids
            if trace_id not in self._ended
        ]
        if not others:
            return
        voting = self._voting()
        grader, answers = self._grader, set(voting.values())
        self._pending = set() if grader is None else grader.pending(answers)
        ballots = [
            Ballot(
                trace_id, answer, self._weigh(self._ended[trace_id]), answer not in self._pending
            )
            for trace_id, answer in voting.items()
        ]
        self.decision = decide(
            ballots,
            others,
            self._rule,
            None if grader is None else self._are_equal,
            None if grader is None else grader.binding,
        )
        if self.decision is not None:
            self.closed, self.why = DECIDED, self._rule.name

    def _are_equal(self, first: str, second: str) -> bool:
        """Return whether two answers that are not pending are equal."""
        pair = (first, second)
        if pair not in self._equal:
            assert self._grader is not None
            self._equal[pair] = self._grader.same(pair)(first, second)
        return self._equal[pair]

    def _voting(self) -> dict[int, str]:
        """Return the answers of the traces that vote."""
        return {
            trace.trace_id: trace.answer
            for trace in self._ended.values()
            if trace.answer is not None and not trace.stopped and not trace.filtered
        }
