"""When a question's vote is decided, and when its budget is spent: plain data, no vLLM.

`decide` is a pure function of the votes so far and of what the traces that have not ended could
still add. Whoever samples a question's traces (`StepLLM`, an evaluation, the simulator, the server)
asks it whenever a trace has ended, and stops the others once it answers.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from step_infer.client.answers import Vote, vote
from step_infer.errors import InputError
from step_infer.settings import finite

NEVER, UNBEATABLE, LIKELY, CONSENSUS = "never", "unbeatable", "likely", "consensus"
STOP_RULES = (NEVER, UNBEATABLE, LIKELY, CONSENSUS)
FINISHED = "finished"
"""How a question ended of which all traces have; else it is one of `wire.CLOSED_REASONS`."""

LEAST_VOTES = 4
"""Votes before which the rule `likely` decides nothing."""

_SLACK = 1e-9
"""Of all weight: what sums of floats may be off."""
_UNSEEN = 1.0
"""Votes that answers which nobody has given yet begin with, all of them together."""
_PRIOR = 0.5
"""Votes that each given answer begins with, beside those it has."""


@dataclass(frozen=True)
class StopRule:
    """When a vote counts as decided.

    Raises:
        InputError: there is no such rule; a threshold is missing, or out of place or range.
    """

    name: str = UNBEATABLE
    """never; unbeatable: whatever the other traces do, the same answer wins; likely: the chance
    that the leading answer wins is at least the threshold; consensus: the leading answer has at
    least the threshold of all weight (DeepConf, arXiv 2508.15260)."""
    threshold: float | None = None
    """In (0, 1], for likely and consensus."""
    least_votes: int = 0
    """Ended traces before which nothing is decided."""

    def __post_init__(self) -> None:
        if self.name not in STOP_RULES:
            raise InputError(
                f"Expected a stop rule out of {', '.join(STOP_RULES)}, found {self.name!r}."
            )
        wanted = self.name in (LIKELY, CONSENSUS)
        if wanted and self.threshold is None:
            raise InputError(
                f"Expected a threshold for the stop rule {self.name}, found none. "
                "Hint: step-eval calibrate writes one into the scorer file."
            )
        if not wanted and self.threshold is not None:
            raise InputError(
                f"Expected no threshold for the stop rule {self.name}, found {self.threshold}. "
                "Hint: leave it out."
            )
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise InputError(f"Expected a threshold in (0, 1], found {self.threshold}.")


def likely_rule(deciding: Mapping[str, Any], vote_by: str) -> StopRule:
    """Return the rule `likely` with the threshold that was found for a vote rule.

    Args:
        deciding: as in the scorer card (`ScorerCard.deciding`).
        vote_by: name of the vote rule, such as "score".

    Raises:
        InputError: no threshold was found for it.
    """
    found = deciding.get(vote_by)
    if not isinstance(found, Mapping) or "threshold" not in found:
        raise InputError(
            f"Expected a threshold for the stop rule likely with the vote {vote_by} in the scorer "
            "card, found none. Hint: step-eval calibrate writes one."
        )
    return StopRule(LIKELY, float(found["threshold"]), LEAST_VOTES)


@dataclass(frozen=True)
class Budget:
    """What a question may cost; None sets no limit.

    Raises:
        InputError: no trace could meet a limit.
    """

    seconds: float | None = None
    """From its first trace's submission."""
    tokens: int | None = None
    """Generated tokens of all its traces together."""

    def __post_init__(self) -> None:
        if self.seconds is not None and not (finite(self.seconds) and self.seconds > 0):
            raise InputError(
                f"Expected a budget of more than 0 seconds, found "
                f"{self.seconds!r:.60}. Hint: leave it out for no limit."
            )
        if self.tokens is not None and not (finite(self.tokens) and self.tokens >= 1):
            raise InputError(
                f"Expected a budget of at least 1 token, found {self.tokens!r:.60}. "
                "Hint: leave it out for no limit."
            )

    def spent(self, seconds: float, tokens: int) -> str | None:
        """Return the name of a limit that is reached, or None."""
        if self.seconds is not None and seconds >= self.seconds:
            return "seconds"
        if self.tokens is not None and tokens >= self.tokens:
            return "tokens"
        return None


@dataclass(frozen=True)
class Ballot:
    """The vote of a trace that has ended."""

    trace: int
    """Its number: between answers of equal weight the one with the lowest wins."""
    answer: str
    weight: float
    settled: bool = True
    """Whether its answer has been compared with all others; an unsettled one could still go to
    any group."""


@dataclass(frozen=True)
class Open:
    """What a trace that has not ended could still add."""

    trace: int
    most: float
    """The most that its vote can weigh; infinity where there is no bound."""
    expected: float | None = None
    """What it would weigh as things stand; None: as much as the mean ballot."""

    @classmethod
    def running(cls, trace: int, most: float, expected: float | None, falls: bool) -> "Open":
        """Return what a trace could add whose score is known, or not yet (None).

        Args:
            trace: its number.
            most: the most that any vote can weigh.
            expected: what its vote would weigh by its score so far.
            falls: whether scores never rise, so that it can weigh no more than that.
        """
        return cls(trace, expected if falls and expected is not None else most, expected)


@dataclass(frozen=True)
class Decision:
    """A vote that need not go on."""

    answer: str
    """The leading answer."""
    chance: float
    """That it wins if all traces go on: 1 for `unbeatable`; the share of the weight for
    `consensus`."""


def decide(
    ballots: Sequence[Ballot],
    others: Sequence[Open],
    rule: StopRule,
    equal: Callable[[str, str], bool] | None = None,
    binding: Callable[[str], Hashable] | None = None,
) -> Decision | None:
    """Say whether a vote is decided, and for which answer.

    With the rule `unbeatable` the answer that wins in the end is equal to the one returned,
    whichever of the other traces end, with whatever answers and weights up to `Open.most`.

    Args:
        ballots: the votes so far, in any order.
        others: the traces that run, wait or have not begun.
        rule: when it counts as decided.
        equal: as for `vote`.
        binding: a key for an answer; answers of one key are always in one group, whatever other
            answers come. By default the answer itself.
    """
    if rule.name == NEVER or not ballots or len(ballots) < rule.least_votes:
        return None
    ballots = sorted(ballots, key=lambda ballot: ballot.trace)
    if rule.name == UNBEATABLE and not _could_lead(ballots, others):
        return None
    outcome = _hold(ballots, equal)
    if outcome.answer is None:
        return None
    if rule.name == UNBEATABLE:
        sure = _is_unbeatable(outcome, ballots, others, equal, binding)
        return Decision(outcome.answer, 1.0) if sure else None
    assert rule.threshold is not None
    chance = outcome.share if rule.name == CONSENSUS else _chance(outcome, ballots, others)
    return Decision(outcome.answer, chance) if chance >= rule.threshold else None


def _hold(ballots: Sequence[Ballot], equal: Callable[[str, str], bool] | None) -> Vote:
    """Hold the vote of the settled ballots, whose order is that of the traces."""
    answers = [ballot.answer if ballot.settled else None for ballot in ballots]
    return vote(answers, [ballot.weight for ballot in ballots], equal)


def _could_lead(ballots: Sequence[Ballot], others: Sequence[Open]) -> bool:
    """Whether all weight so far is more than what may come: no decision without that."""
    settled = math.fsum(ballot.weight for ballot in ballots if ballot.settled)
    return settled >= _to_come(ballots, others)


def _to_come(ballots: Sequence[Ballot], others: Sequence[Open]) -> float:
    unsettled = math.fsum(ballot.weight for ballot in ballots if not ballot.settled)
    return unsettled + math.fsum(other.most for other in others)


def _is_unbeatable(
    outcome: Vote,
    ballots: Sequence[Ballot],
    others: Sequence[Open],
    equal: Callable[[str, str], bool] | None,
    binding: Callable[[str], Hashable] | None,
) -> bool:
    # A group of `vote` holds only answers that are all equal to each other; but one that leaves
    # something out ("5" beside "5 cm") may go to another group when more answers come. Sure is
    # what stays with the answer that is returned: where "5" alone outweighs all, "5 m", which it is
    # with now, may lose it to "5 cm". A rival could gather all that is equal to some other answer.
    assert outcome.answer is not None
    key_of = binding if binding is not None else _itself
    leader = outcome.groups[0][2]
    sure_key = key_of(outcome.answer)
    sure = math.fsum(
        ballots[voter].weight for voter in leader if key_of(ballots[voter].answer) == sure_key
    )
    by_form: dict[str, list[Ballot]] = {}
    for ballot in ballots:
        if ballot.settled and key_of(ballot.answer) != sure_key:
            by_form.setdefault(ballot.answer, []).append(ballot)
    rivals = [
        [
            ballot
            for other, voters in by_form.items()
            if other == form or (equal is not None and equal(form, other))
            for ballot in voters
        ]
        for form in by_form
    ]
    to_come = _to_come(ballots, others)
    rival = max((math.fsum(b.weight for b in group) for group in rivals), default=0.0)
    lead = sure - rival - to_come
    if lead > _SLACK * (sure + rival + to_come):
        return True
    # In a tie the answer of the earliest trace wins. Sums of whole numbers are exact.
    if lead != 0 or not all(float(ballot.weight).is_integer() for ballot in ballots):
        return False
    first = min(ballots[v].trace for v in leader if key_of(ballots[v].answer) == sure_key)
    late = [ballot.trace for ballot in ballots if key_of(ballot.answer) != sure_key]
    return all(first < trace for trace in (*late, *(other.trace for other in others)))


def _itself(answer: str) -> Hashable:
    return answer


def _chance(outcome: Vote, ballots: Sequence[Ballot], others: Sequence[Open]) -> float:
    """Return the chance that the leading answer wins: a posterior, to be calibrated.

    Every trace to come is taken to vote like the ballots so far, with a Dirichlet prior over the
    answers given and those that nobody has given yet, and to weigh what the traces to come weigh in
    the mean. The chances of the rivals add up.
    """
    voters = sum(len(group) for _, _, group in outcome.groups)
    total = math.fsum(weight for _, weight, _ in outcome.groups)
    mean = total / voters
    expected = [mean if other.expected is None else other.expected for other in others]
    expected += [ballot.weight for ballot in ballots if not ballot.settled]
    if not expected:
        return 1.0
    each = math.fsum(expected) / len(expected)
    _, weight, leaders = outcome.groups[0]
    rivals = [(other, len(group) + _PRIOR) for _, other, group in outcome.groups[1:]]
    rivals.append((0.0, _UNSEEN))
    own = len(leaders) + _PRIOR
    mass = own + sum(prior for _, prior in rivals)
    lost = math.fsum(
        _chance_to_catch_up(len(expected), each, weight - other, own, prior, mass)
        for other, prior in rivals
    )
    return max(0.0, 1.0 - lost)


def _chance_to_catch_up(
    count: int, each: float, lead: float, own: float, rival: float, mass: float
) -> float:
    """Return the chance that a rival makes up a lead with `count` votes that weigh `each`.

    The votes for the two and for the rest are Dirichlet-multinomial with the parameters `own`,
    `rival` and what is left of `mass`.
    """
    if each <= 0 or count * each < lead:
        return 0.0
    rest = mass - own - rival
    ours, theirs, left = (_log_rising(value, count) for value in (own, rival, rest))
    whole = math.lgamma(count + 1) + math.lgamma(mass) - math.lgamma(mass + count)
    i = np.arange(count + 1)[:, None]  # votes for the rival
    j = np.arange(count + 1)[None, :]  # votes for the leader
    catches = (i + j <= count) & ((i - j) * each >= lead * (1 - _SLACK))
    i, j = np.nonzero(catches)
    if i.size == 0:
        return 0.0
    logs = whole + theirs[i] + ours[j] + left[count - i - j]
    return float(min(1.0, np.exp(logs).sum()))


def _log_rising(parameter: float, count: int) -> "np.ndarray":
    """Return log(Γ(a + k) / (Γ(a) k!)) for k from 0 to `count`; a may be 0."""
    if parameter <= 0:
        return np.array([0.0] + [-math.inf] * count)
    steps = (math.log((parameter + k) / (k + 1)) for k in range(count))
    return np.array(list(accumulate(steps, initial=0.0)))
