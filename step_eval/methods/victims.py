"""Victim ablations: STEP with everything but the choice of the trace that is stopped.

Their trigger, the group that loses a trace, the traces that may be stopped and the vote are STEP's,
so that a difference to STEP is what the score's choice is worth. `step-eval` runs them in the real
engine (`victim_scheduler`), `step-eval simulate` in the simulated one.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf


@dataclass(frozen=True)
class Ablation:
    """One way to choose the victim."""

    label: str
    """Its name in tables and pictures."""
    about: str
    """Which trace is stopped, to stand in a sentence."""
    victim: str
    """What decides it, one of `VICTIMS`."""


ABLATIONS = {
    "random": Ablation("random victim", "a random trace", "rank"),
    "youngest": Ablation("youngest victim", "the trace with the fewest tokens", "youngest"),
    "longest": Ablation("longest victim", "the trace with the most tokens", "longest"),
    "least-confident": Ablation(
        "least confident victim", "the trace of the lowest mean token confidence", "least-confident"
    ),
    "oracle": Ablation("oracle victim", "a trace that comes out wrong, while there is one", "rank"),
}
"""By the name of the method."""


VICTIM_SCHEDULER = "step_eval.methods.victim_scheduler.VictimScheduler"
"""The dotted path of the scheduler that they run on."""

VICTIMS = ("score", "youngest", "longest", "least-confident", "rank")
"""Which trace of a group is stopped: that of the lowest score (STEP), of the fewest tokens, of the
most, of the lowest mean token confidence, or of the lowest number that came with its request."""


def victim_rank(victim: str, tokens: int, confidence: float | None, rank: float | None) -> float:
    """Return the number whose lowest is stopped; a trace without it is stopped after all others.

    Args:
        victim: one of `VICTIMS`, but for "score".
        tokens: the trace's tokens so far.
        confidence: their mean token confidence, if it is known.
        rank: the number that came with its request, if any.
    """
    if victim == "youngest":
        return tokens
    if victim == "longest":
        return -tokens
    number = confidence if victim == "least-confident" else rank
    return inf if number is None else number


def random_ranks(seed: int, question_id: str, count: int) -> list[float]:
    """Return the ranks of a question's traces [count] for random victims: the same for a seed."""
    generator = random.Random(f"{seed}/{question_id}")
    return [generator.random() for _ in range(count)]


def oracle_ranks(right: Iterable[bool]) -> list[float]:
    """Return the ranks of a question's traces [N] with which wrong ones are stopped first."""
    return [float(is_right) for is_right in right]
