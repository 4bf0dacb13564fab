r"""Find the final answer in a response: the content of its last \boxed{}.

Votes over the answers of one question.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from step_infer.scorer.think_end import THINK_END

_BOX = "\\boxed"


def extract_boxed(text: str, think_end: str | None = THINK_END) -> str | None:
    r"""Return the content of the last complete \boxed{...}, or None.

    Where the text has an end of thinking, only what follows it counts: a box inside the reasoning
    is a draft. Braces nest; an escaped brace does not open or close. "\boxed 7" gives "7"; an empty
    box is no answer.

    Args:
        text: a whole response.
        think_end: text that ends the thinking; None where nothing does.
    """
    answer = text.rpartition(think_end)[2] if think_end else text
    start = answer.rfind(_BOX)
    while start >= 0:
        content = _content(answer, start + len(_BOX))
        if content is not None:
            return content.strip() or None
        start = answer.rfind(_BOX, 0, start)
    return None


def _content(text: str, start: int) -> str | None:
    while start < len(text) and text[start].isspace():
        start += 1
    if start >= len(text):
        return None
    if text[start] != "{":
        return text[start:].split(maxsplit=1)[0].rstrip("$.,") or None
    depth = 0
    position = start
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 1
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return text[start + 1 : position]
        position += 1
    return None


@dataclass(frozen=True)
class Vote:
    """The outcome of a vote."""

    answer: str | None
    """The winning answer, in the form most of its voters wrote it; None where nobody voted."""
    share: float
    """The winner's part of all weight, in [0, 1]."""
    groups: tuple[tuple[str, float, tuple[int, ...]], ...]
    """Each group of equal answers: its form, its weight, the indices of its voters."""


def vote(
    answers: Sequence[str | None],
    weights: Sequence[float] | None = None,
    equal: Callable[[str, str], bool] | None = None,
) -> Vote:
    """Group equal answers and return the group of most weight; ties go to the earlier answer.

    Args:
        answers: one answer a trace [N]; None does not vote.
        weights: one weight a trace [N], none below 0; 1 each by default.
        equal: whether two answers are the same; by default, whether they are the same text.
    """
    if weights is None:
        weights = [1.0] * len(answers)
    by_form: dict[str, list[int]] = {}
    for index, answer in enumerate(answers):
        if answer is not None:
            by_form.setdefault(answer, []).append(index)
    # Forms are compared with each group's first form only: equality is meant to be transitive.
    groups: list[list[str]] = []
    for form in by_form:
        for group in groups:
            if equal is not None and equal(group[0], form):
                group.append(form)
                break
        else:
            groups.append([form])
    outcome = []
    for group in groups:
        voters = tuple(sorted(index for form in group for index in by_form[form]))
        form = max(group, key=lambda form: len(by_form[form]))
        outcome.append((form, float(sum(weights[index] for index in voters)), voters))
    if not outcome:
        return Vote(None, 0.0, ())
    total = sum(weight for _, weight, _ in outcome)
    outcome.sort(key=lambda group: (-group[1], group[2][0]))
    return Vote(outcome[0][0], outcome[0][1] / total if total > 0 else 0.0, tuple(outcome))
