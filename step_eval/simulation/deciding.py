"""When the vote of a simulated question is decided, from its schedule and its traces."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isinf

from step_eval.recorded.traces import PoolTrace
from step_eval.simulation.schedule import Schedule, steps_seen
from step_eval.votes import UNIFORM, most_weight, vote_rule
from step_infer.client.answers import vote
from step_infer.client.deciding import (
    LEAST_VOTES,
    LIKELY,
    NEVER,
    Ballot,
    Decision,
    Open,
    StopRule,
    decide,
)
from step_infer.scorer.aggregate import AGGREGATORS, NEVER_RISE

ANY_CHANCE = StopRule(LIKELY, sys.float_info.min, LEAST_VOTES)
"""The rule `likely` at whatever chance: for its course over a question."""


@dataclass(frozen=True)
class Voting:
    """The vote of a question's traces, which are known to their ends; answers are texts."""

    traces: Sequence[PoolTrace]
    """All traces [N]."""
    rule: str
    """Name of the vote rule, out of those that go by scores or are uniform."""
    aggregator: str = "mean"
    """From step scores to a trace score."""
    scores: Sequence[Sequence[float | None]] | None = None
    """Step scores [N] that stand for the traces' own; None where not finite."""

    def winner(self, voters: Sequence[int]) -> str | None:
        """Return the answer for which some traces vote; None where none of them has one."""
        voters = sorted(voters)
        answers = [self.traces[trace].answer for trace in voters]
        return vote(answers, self.weights(voters)).answer

    def weights(self, voters: Sequence[int]) -> list[float]:
        """Return what the votes of some traces weigh that have all ended."""
        return vote_rule(self.rule)([self._scores[trace] for trace in voters])

    def decisions(self, schedule: Schedule, rule: StopRule) -> Iterator[tuple[int, Decision]]:
        """Yield each end of a trace at which a rule calls the vote decided, and for what.

        An end is given as its index into `schedule.order`. The last end is left out, for nothing is
        left to decide; so is all where a vote can weigh anything. Where trace scores never rise, a
        running trace's vote can weigh at most what it would weigh now.
        """
        most = most_weight(self.rule)
        if rule.name == NEVER or isinf(most):
            return
        falls = self.aggregator in NEVER_RISE and self.rule != UNIFORM
        pruned = set(schedule.pruned)
        weight_N = self.weights(range(len(self.traces)))
        others = {trace: Open(trace, most) for trace in range(len(self.traces))}
        ballots: list[Ballot] = []
        for place, trace in enumerate(schedule.order[:-1]):
            del others[trace]
            answer = self.traces[trace].answer
            if trace not in pruned and answer is not None:
                ballots.append(Ballot(trace, answer, weight_N[trace]))
            coming = list(others.values())
            if rule.name == LIKELY or falls:
                tokens_N = schedule.tokens_at(place)
                coming = [
                    Open.running(t, most, self._expected(t, tokens_N[t]), falls) for t in others
                ]
            decision = decide(ballots, coming, rule)
            if decision is not None:
                yield place, decision

    def _expected(self, trace: int, tokens: int) -> float | None:
        """Return what a running trace's vote would weigh now; None before its first step score."""
        if self.rule == UNIFORM:
            return 1.0
        score = self._score(trace, steps_seen(self.traces[trace].positions, tokens))
        return None if score is None else vote_rule(self.rule)([score])[0]

    @cached_property
    def _scores(self) -> list[float | None]:
        """Trace scores at the traces' ends [N]."""
        return [self._score(trace) for trace in range(len(self.traces))]

    def _score(self, trace: int, steps: int | None = None) -> float | None:
        own = self.traces[trace].scores if self.scores is None else self.scores[trace]
        finite = [score for score in own[:steps] if score is not None]
        return AGGREGATORS[self.aggregator](finite) if finite else None
