r"""Benchmarks by name: where their questions are, in which fields, and how they are asked.

A field of several names is found by the first that a row has: the hub's data set and files that
circulate (an object with `question` and `answer` on each line) are both read. Field names as in the
data sets' cards.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from step_infer.client.answers import extract_boxed
from step_infer.client.kinds.options import CHOICE, MATH
from step_infer.errors import InputError

_MARK = "####"


@dataclass(frozen=True)
class Benchmark:
    """The form of a set of questions."""

    source: str | None = None
    """Data set of the hub that holds it; None where there is none."""
    question: tuple[str, ...] = ("question",)
    """Fields of the question's text, the first that there is."""
    answer: tuple[str, ...] = ("answer",)
    """Fields of the right answer; for multiple choice, of the right option's text."""
    worked: tuple[str, ...] = ()
    """Fields of a solution that ends with the right answer, where none of `answer` is there. A
    text under `answer` may be one too then."""
    id: tuple[str, ...] = ("id",)
    """Fields of the id."""
    wrong_options: tuple[str, ...] = ()
    """Fields of the other options, for multiple choice; otherwise none."""
    answers: str = MATH
    """Answer kind of its questions."""


PLAIN = Benchmark()
"""Questions with their answers, of no benchmark."""


def _math_arena(name: str) -> Benchmark:
    return Benchmark(f"MathArena/{name}", ("problem", "question"), id=("problem_idx", "id"))


def _math(source: str) -> Benchmark:
    return Benchmark(source, ("problem", "question"), id=("unique_id", "id"), worked=("solution",))


BENCHMARKS = {
    "aime_2025": _math_arena("aime_2025"),
    "hmmt_feb_2024": _math_arena("hmmt_feb_2024"),
    "hmmt_feb_2025": _math_arena("hmmt_feb_2025"),
    # The paper's training questions are published as JSON lines beside its code, not on the hub.
    "hmmt_2012_2023": Benchmark(None, ("problem", "question"), id=("problem_idx", "id")),
    "gpqa_diamond": Benchmark(
        "Idavidrein/gpqa:gpqa_diamond",
        ("Question",),
        ("Correct Answer",),
        id=("Record ID", "id"),
        wrong_options=("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"),
        answers=CHOICE,
    ),
    "gsm8k": Benchmark("openai/gsm8k:main@test", worked=("solution",)),
    "math_500": _math("HuggingFaceH4/MATH-500@test"),
    # Its training questions: MATH-500 is of the others.
    "math": _math("DigitalLearningGmbH/MATH-lighteval@train"),
}
"""Benchmarks by name: first those of the paper (arXiv 2601.09093, section 4.1)."""


def find_benchmark(name: str) -> Benchmark:
    """Return a benchmark by its name.

    Raises:
        InputError: there is none of that name.
    """
    if name not in BENCHMARKS:
        raise InputError(f"Expected a benchmark out of {', '.join(BENCHMARKS)}, found {name!r}.")
    return BENCHMARKS[name]


def final_answer(solution: str) -> str | None:
    r"""Return what a worked solution ends with: what follows "####", or is in its last \boxed{}.

    None where it has neither.
    """
    _, mark, end = solution.rpartition(_MARK)
    return (end.strip() or None) if mark else extract_boxed(solution, None)


def multiple_choice(
    question: str, right: str, wrong: Sequence[str], seed: int = 0
) -> tuple[str, str]:
    r"""Return the text that asks for one of several options, and the letter of the right one.

    The order of the options follows from the seed and the question's text alone.
    """
    options = [right.strip(), *(option.strip() for option in wrong)]
    order = list(range(len(options)))
    random.Random(f"{seed} {question}").shuffle(order)
    letters = ascii_uppercase[: len(options)]
    lines = [f"{letter}) {options[index]}" for letter, index in zip(letters, order, strict=True)]
    choice = f"{', '.join(letters[:-1])} or {letters[-1]}"
    text = "\n".join(
        [
            question.strip(),
            "",
            *lines,
            "",
            rf"Put the letter of the right option ({choice}), and nothing else, within \boxed{{}}.",
        ]
    )
    return text, letters[order.index(0)]
