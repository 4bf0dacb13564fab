"""Mathematical answers, by their canonical forms, else by math-verify in worker processes.

Nearly all answers have a canonical form (`step_infer.client.canonical`), which is exact and takes
well under a millisecond. What it does not understand goes to math-verify. That can hang on hostile
input and its own limit works only in a main thread.
"""

from collections.abc import Hashable
from functools import lru_cache

from step_infer.client import canonical
from step_infer.client.answers import extract_boxed
from step_infer.client.canonical import Canonical
from step_infer.client.kinds.choice import extract_choice
from step_infer.client.kinds.kind import OPEN, Open, final_part
from step_infer.client.kinds.stated import statements
from step_infer.client.worker_pool import WorkerProgram


class MathKind:
    r"""The last \boxed{}; equal as mathematics."""

    program = WorkerProgram(
        "step_infer.client.grading_worker",
        refused=lambda _: RuntimeError(
            "A grading process ended at its start; is math-verify installed?"
        ),
    )

    def __init__(self) -> None:
        self._clean = lru_cache(maxsize=10_000)(_clean)
        self._read = lru_cache(maxsize=10_000)(_read)

    def extract(self, text: str, think_end: str | None) -> str | None | Open:
        r"""Return the content of the last \boxed{}."""
        return extract_boxed(text, think_end)

    def clean(self, answer: str) -> str:
        """Return an answer with its escapes mended and its spaces single."""
        return self._clean(answer)

    def binding(self, answer: str) -> Hashable:
        """Return a key of the canonical form, or the answer where it has none."""
        return self._read(answer)[1]

    def compare(self, first: str, second: str, in_vote: bool) -> bool | None | Open:
        """Return the verdict on a pair as far as it is to be had without math-verify."""
        if first == second:
            return True
        if not first or not second:
            return False
        forms = self._read(first)[0], self._read(second)[0]
        if in_vote and None in forms:
            return False  # dozens of sums without end would take math-verify minutes
        if max(len(first), len(second)) > canonical.LONGEST_ANSWER:
            return None
        if forms[0] is not None and forms[1] is not None:
            verdict = canonical.equal(forms[0], forms[1])
            if verdict is not None:
                return verdict
        for text, form in zip((first, second), forms, strict=True):
            unread = form is None and not canonical.math_verify_reads(text)
            if unread or (form is not None and form.heavy) or canonical.is_explosive(text):
                return None
        return OPEN


class AutoKind(MathKind):
    r"""What a \boxed{} holds, or else what the response states in words, or an option's letter."""

    def extract(self, text: str, think_end: str | None) -> str | None | Open:
        """Return the first of: the boxed answer, the stated one, the letter of an option."""
        boxed = extract_boxed(text, think_end)
        if boxed is not None:
            return boxed
        final = final_part(text, think_end)
        for stated in statements(final):
            form = canonical.canonical(stated.answer)
            # "The answer is not obvious" states nothing; "Answer: Evelyn" does.
            if form is not None and (form.kind != "words" or not stated.in_prose):
                return stated.answer
        return extract_choice(final)


def _clean(answer: str) -> str:
    return " ".join(canonical.mend_escapes(answer).split())


def _read(answer: str) -> tuple[Canonical | None, Hashable]:
    """Return the canonical form of an answer, where it has one, and its binding."""
    form = canonical.canonical(answer)
    return form, (answer if form is None else canonical.identity(form))
