"""Victim ablations: STEP with everything but the choice of the trace that is stopped.

Their trigger, the group that loses a trace, the traces that may be stopped and the vote are STEP's,
so that a difference to STEP is what the score's choice is worth. `step-eval` runs them in the real
engine, `step-eval simulate` in the simulated one.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ablation:
    """One way to choose the victim."""

    label: str
    """Its name in tables and pictures."""
    about: str
    """Which trace is stopped, to stand in a sentence."""
    victim: str
    """The engine's choice, one of `step_infer.policy.VICTIMS`."""


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


def random_ranks(seed: int, question_id: str, count: int) -> list[float]:
    """Return the ranks of a question's traces [count] for random victims: the same for a seed."""
    generator = random.Random(f"{seed}/{question_id}")
    return [generator.random() for _ in range(count)]


def oracle_ranks(right: Iterable[bool]) -> list[float]:
    """Return the ranks of a question's traces [N] with which wrong ones are stopped first."""
    return [float(is_right) for is_right in right]
