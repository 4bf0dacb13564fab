r"""From responses to an answer: the content of the last \boxed{} or \fbox{}, and the vote."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from step_infer.client.canonical import boxed, canonical
from step_infer.scorer.think_end import THINK_END


def extract_boxed(text: str, think_end: str | None = THINK_END) -> str | None:
    r"""Return the content of the last complete \boxed{...} or \fbox{...}, or None.

    Where the text has an end of thinking, only what follows it counts: a box inside the reasoning
    is a draft. Braces nest; an escaped brace does not open or close. "\boxed 7" gives "7"; an empty
    box is no answer. Boxes that a comma, "and" or "or" joins are one answer: "\boxed{3} and
    \boxed{5}" gives "3, 5".

    Args:
        text: a whole response.
        think_end: text that ends the thinking; None where nothing does.
    """
    answer = text.rpartition(think_end)[2] if think_end else text
    parts = boxed(answer)
    if len(parts) < 2:
        return (parts[0] or None) if parts else None
    # "\boxed{\frac12} or \boxed{0.5}" says one thing twice.
    kept: dict[Hashable, str] = {}
    for part in parts:
        kept.setdefault(canonical(part) or part, part)
    return ", ".join(kept.values())


@dataclass(frozen=True)
class Vote:
    """The outcome of a vote."""

    answer: str | None
    """The winning answer, in the form most of its voters wrote it, then the shortest; None where
    nobody voted."""
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

    But for ties the outcome does not depend on the order of the answers (`group_forms`).

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
    counts = {form: len(voters) for form, voters in by_form.items()}
    groups = [[form] for form in by_form] if equal is None else group_forms(counts, equal)
    outcome = []
    for group in groups:
        voters = tuple(sorted(index for form in group for index in by_form[form]))
        form = min(group, key=lambda form: (-counts[form], len(form), form))
        outcome.append((form, float(sum(weights[index] for index in voters)), voters))
    if not outcome:
        return Vote(None, 0.0, ())
    total = sum(weight for _, weight, _ in outcome)
    outcome.sort(key=lambda group: (-group[1], group[2][0]))
    return Vote(outcome[0][0], outcome[0][1] / total if total > 0 else 0.0, tuple(outcome))


def group_forms(counts: Mapping[str, int], equal: Callable[[str, str], bool]) -> list[list[str]]:
    """Return groups of equal forms, which depend on neither their order nor that of their voters.

    Equality is not transitive where a form leaves something out: "5" equals "5 cm" and "5 m", which
    are not equal. Such a form joins the neighbour of most voters, then the first one as text. Forms
    that are equal to each other and to the same others are in one group.

    Args:
        counts: how many voters wrote each form.
        equal: whether two forms are the same.
    """
    forms = sorted(counts)
    near = {form: {form} for form in forms}
    for first, second in combinations(forms, 2):
        if equal(first, second):
            near[first].add(second)
            near[second].add(first)
    groups: dict[frozenset[str], list[str]] = {}
    torn = []
    for form in forms:
        if all(near[other] >= near[form] for other in near[form]):
            # All its neighbours are equal to each other; some may have others besides.
            groups.setdefault(frozenset(near[form]), []).append(form)
        else:
            torn.append(form)
    home = {form: group for group in groups.values() for form in group}
    whole = [(sum(counts[form] for form in group), group) for group in groups.values()]
    size = {id(group): voters for voters, group in whole}
    joins: list[tuple[str, list[str]]] = []
    for form in torn:
        choices = [home[other] for other in sorted(near[form]) if other in home]
        if choices:
            joins.append((form, max(choices, key=lambda group: size[id(group)])))
        else:
            # Twins have the same neighbours; nothing tears them apart.
            groups.setdefault(frozenset(near[form]), []).append(form)
    for form, group in joins:
        group.append(form)
    return list(groups.values())
