"""The threshold of the stop rule `likely`: found on questions, and tried on others.

For each draw of a question's traces there is one number that decides: the highest chance at which
stopping would have changed the answer (`Course.worst`). Any threshold above it leaves the answer as
it is. The threshold is the lowest one with

    (sum over questions of the share of their draws with worst >= threshold, plus 1) / (Q + 1)

at most the share that may change: conformal risk control (arXiv 2208.02814). If later questions are
like those Q, the share of them that changes is at most that, in the mean over all sets of questions
that could have been taken. The 1 stands for a question not seen yet, which may be the worst of all;
so a share of 1 % takes 99 questions at least, be there no change among them.

Axes: Q questions, R draws of traces.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from step_eval.simulation.deciding import ANY_CHANCE, Voting
from step_eval.simulation.question import finished
from step_eval.simulation.schedule import Schedule
from step_eval.simulation.timing import Timing
from step_eval.statistics import Floats, Interval, interval, question_draws
from step_infer.client.deciding import StopRule

LEAST_THRESHOLD = 0.5
"""No chance below counts as likely."""
_CONFIDENCE = 0.95
"""Of the upper end of a share of changed answers."""
_SLACK = 1e-9
"""Of a question: what sums of floats may be off."""


@dataclass(frozen=True)
class Stop:
    """What comes of a question if it stops at some end of a trace."""

    chance: float
    """That its leading answer wins, by the rule `likely`."""
    changed: bool
    """Whether it is another answer than if all traces run to their ends."""
    time: float
    """In seconds, or in engine steps."""
    tokens: float


@dataclass(frozen=True)
class Course:
    """A question with one draw of its traces: where it could stop."""

    stops: tuple[Stop, ...]
    """The ends of traces at which the chance is higher than at all before, and last the end of all
    traces, which every threshold waits for at most."""
    unbeatable: Stop
    """Where nothing that comes can change the answer any more."""

    @property
    def worst(self) -> float:
        """The highest chance at which stopping would change the answer; 0 where none does."""
        return max((stop.chance for stop in self.stops if stop.changed), default=0.0)

    def at(self, threshold: float) -> Stop:
        """Return where it stops with a threshold of at most 1."""
        return next(stop for stop in self.stops if stop.chance >= threshold)


def course(schedule: Schedule, voting: Voting, timing: Timing) -> Course:
    """Return where a question could stop.

    Args:
        schedule: of its traces, where nothing is decided.
        voting: their vote.
        timing: cost of a step of their engine.
    """
    answer = voting.winner(finished(schedule))

    def stop(place: int, chance: float, found: str | None) -> Stop:
        cut = schedule.decided_at(place)
        seconds = max(timing.seconds(work) for work in cut.ended_after.values())
        return Stop(chance, found != answer, seconds, float(sum(cut.tokens)))

    stops: list[Stop] = []
    for place, decision in voting.decisions(schedule, ANY_CHANCE):
        if decision.chance > (stops[-1].chance if stops else 0.0):
            stops.append(stop(place, decision.chance, decision.answer))
    end = stop(len(schedule.order) - 1, math.inf, answer)
    sure = next(voting.decisions(schedule, StopRule()), None)
    return Course((*stops, end), end if sure is None else stop(sure[0], 1.0, sure[1].answer))


def find_threshold(worst_QR: Floats, allowed: float) -> float | None:
    """Return the lowest threshold at which few enough answers change; None: there is none.

    Args:
        worst_QR: the highest chance at which stopping would change the answer.
        allowed: how many questions may change; each draw of one is a part of it.
    """
    falling = np.sort(worst_QR, axis=None)[::-1]
    draws = int((allowed + _SLACK) * worst_QR.shape[1])  # so many may lie at the threshold or above
    level = float(falling[draws]) if draws < len(falling) else 0.0
    threshold = max(math.nextafter(level, math.inf), LEAST_THRESHOLD)
    return threshold if threshold <= 1 else None


@dataclass(frozen=True)
class Trial:
    """What a threshold does, each question stopped by one that was found on all others."""

    changed: float
    """Share of questions whose answer changed."""
    changed_high: float
    """Upper end of its one-sided 95 % interval (Clopper and Pearson)."""
    time: Interval
    """Change of the mean time of a question, as a part of it."""
    tokens: Interval
    """Change of the mean tokens of a question, as a part of them."""
    unbeatable_time: Interval
    """As `time`, of the rule `unbeatable`."""


def try_thresholds(courses_QR: Sequence[Sequence[Course]], allowed: float) -> Trial:
    """Stop each question by the threshold of the others.

    Args:
        courses_QR: all questions with their draws.
        allowed: as for `find_threshold`.
    """
    worst_QR = np.array([[course.worst for course in row] for row in courses_QR])
    stops_QR: list[list[Stop]] = []
    for question, row in enumerate(courses_QR):
        threshold = find_threshold(np.delete(worst_QR, question, axis=0), allowed)
        stops_QR.append([c.at(math.inf if threshold is None else threshold) for c in row])
    ends_QR = [[course.at(math.inf) for course in row] for row in courses_QR]
    sure_QR = [[course.unbeatable for course in row] for row in courses_QR]
    changed = float(_means(stops_QR, "changed").sum())
    count = len(courses_QR)
    return Trial(
        changed / count,
        _upper_end(changed, count),
        _relative(_means(ends_QR, "time"), _means(stops_QR, "time")),
        _relative(_means(ends_QR, "tokens"), _means(stops_QR, "tokens")),
        _relative(_means(ends_QR, "time"), _means(sure_QR, "time")),
    )


def _means(stops_QR: Sequence[Sequence[Stop]], name: str) -> Floats:
    return np.array([[getattr(s, name) for s in row] for row in stops_QR], dtype=float).mean(axis=1)


def _relative(before_Q: Floats, after_Q: Floats) -> Interval:
    times_DQ = question_draws(len(before_Q)).astype(np.float64)
    ratio_D = (times_DQ @ after_Q) / (times_DQ @ before_Q)
    return interval(after_Q.mean() / before_Q.mean() - 1, ratio_D - 1, len(before_Q))


def _upper_end(changed: float, count: int) -> float:
    from scipy.special import betaincinv  # loads faster than scipy.stats

    return 1.0 if changed >= count else float(betaincinv(changed + 1, count - changed, _CONFIDENCE))
