"""Questions with their answers, from a file, the hub, or a benchmark known by name."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from data_gen.questions.benchmarks import (
    BENCHMARKS,
    PLAIN,
    Benchmark,
    final_answer,
    find_benchmark,
    multiple_choice,
)
from data_gen.questions.rows import MOST_LINE_MIB, Row, RowSource, short
from step_infer.client.canonical import mend_escapes
from step_infer.client.prompt import lone_surrogate
from step_infer.errors import InputError


@dataclass(frozen=True)
class Question:
    """One question of a set."""

    id: str
    """The source's id, or "line-N" or "row-N" where it has none."""
    question: str
    answer: str | None
    """The ground truth; None where there is none."""


@dataclass(frozen=True)
class QuestionSet:
    """What was read from a source."""

    questions: list[Question]
    skipped: list[str]
    """What is wrong with the rows that were left out."""
    sha256: str
    """Checksum of the whole source."""


@dataclass(frozen=True, kw_only=True)
class QuestionOptions:
    """How questions are read; the commands that read some share these options."""

    benchmark: str | None = None
    """Read the questions in the form of this benchmark: aime_2025, hmmt_feb_2024, hmmt_feb_2025,
    hmmt_2012_2023, gpqa_diamond, gsm8k, math_500 or math (the training questions of MATH). Not
    needed where --questions is the benchmark's name."""
    question_field: str | None = None
    """Field of the question's text; none given, the benchmark's, or "question"."""
    answer_field: str | None = None
    """Field of the right answer; none given, the benchmark's, or "answer"."""
    id_field: str | None = None
    """Field of the id; none given, the benchmark's, or "id". A row without an id gets one from its
    number."""
    choice_seed: int = 0
    """Decides the order of the options of multiple-choice questions."""
    skip_bad_lines: bool = False
    """Leave out rows that cannot be used, and count them, where the default is to stop."""
    limit: int | None = None
    """Use only so many questions from the start."""
    shard: str = "0/1"
    """Take part I of K of the questions (every K-th), written I/K with I from 0; the subcommand
    merge joins the parts."""

    def __post_init__(self) -> None:
        if self.benchmark is not None:
            find_benchmark(self.benchmark)
        if self.limit is not None and self.limit < 1:
            raise InputError(f"Expected --limit of at least 1 question, found {self.limit}.")
        shard_part(self.shard)

    def form(self, source: Path | str) -> Benchmark:
        """Return the form in which the questions of a source are."""
        if str(source) in BENCHMARKS and not Path(source).exists():
            return find_benchmark(str(source))
        return PLAIN if self.benchmark is None else find_benchmark(self.benchmark)

    def reading_settings(self) -> dict[str, Any]:
        """Return the options that decide what a row becomes, flat and JSON-ready."""
        names = ("benchmark", "question_field", "answer_field", "id_field", "choice_seed")
        return {name: getattr(self, name) for name in names}


def shard_part(shard: str) -> tuple[int, int]:
    """Return which part of the questions I/K names, and of how many parts.

    Raises:
        InputError: it is not written so, or I is not below K.
    """
    index, slash, count = shard.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise InputError(
            f"Expected --shard I/K with I from 0 to K - 1, such as 0/4, found {shard!r}."
        )
    return int(index), int(count)


def shard_questions(questions: Sequence[Question], shard: str) -> list[Question]:
    """Return the questions of a shard: every K-th, from the I-th on.

    Raises:
        InputError: there are too few questions for one.
    """
    index, count = shard_part(shard)
    if len(questions) <= index:
        raise InputError(
            f"Expected at least one question in shard {shard}, found {len(questions)} "
            "in all. Hint: use fewer shards."
        )
    return list(questions[index::count])


def load_questions(
    source: Path | str,
    options: QuestionOptions = QuestionOptions(),  # noqa: B008 - frozen
    *,
    require_answer: bool = True,
    note: Callable[[str], None] | None = None,
) -> QuestionSet:
    """Read questions; empty lines are passed over.

    Args:
        source: a file (JSON lines, .csv, .parquet), a data set of the hub as
            org/name[:config][@split], or the name of a benchmark.
        options: how to read it.
        require_answer: a row without an answer cannot be used.
        note: called with one line on the rows that were left out, if there are any.

    Raises:
        InputError: the source cannot be read, holds no question, or has a row that cannot be used;
            the message names file and line, or source and row.
    """
    name, form = str(source), options.form(source)
    if name in BENCHMARKS and not Path(source).exists():
        if options.benchmark not in (None, name):
            raise InputError(
                f"Expected --benchmark {name} or none, found {options.benchmark}. "
                "Hint: leave --benchmark out; the name says it."
            )
        if form.source is None:
            raise InputError(
                f"Expected a file with the questions of {name}, which no data set of the hub "
                f"holds, found its name. Hint: say --questions FILE --benchmark {name}."
            )
        name = form.source
    rows = RowSource(name)
    questions: list[Question] = []
    places: dict[str, tuple[str, bool]] = {}
    id_names = _names(options.id_field, form.id)
    skipped: list[str] = []
    for row in rows:
        if len(questions) == options.limit:
            break
        try:
            question = _question(row, form, options, require_answer)
            made = _value(row, id_names) is None
            first, first_made = places.setdefault(question.id, (row.place, made))
            if first != row.place:
                here = ", made for this row without one," if made else ""
                there = ", where it was made for a row without one" if first_made else ""
                raise InputError(
                    f"Expected each id once, found {question.id!r:.60}{here} in {first} too{there}."
                )
        except InputError as error:
            if not options.skip_bad_lines:
                raise InputError(
                    f"{row.place}: {error} Hint: mend it, or leave out such rows with "
                    "--skip-bad-lines."
                ) from error
            skipped.append(f"{row.place}: {error}")
            continue
        questions.append(question)
    if not questions:
        left_out = f" ({len(skipped)} bad rows left out)" if skipped else ""
        raise InputError(
            f"Expected at least one question in {name}, found none{left_out}. "
            "Hint: check the source, --question-field and --answer-field."
        )
    if skipped and note is not None:
        note(f"Left out {len(skipped)} rows that cannot be used; the first: {skipped[0]}")
    return QuestionSet(questions, skipped, rows.sha256())


def _question(
    row: Row, form: Benchmark, options: QuestionOptions, require_answer: bool
) -> Question:
    if row.error is not None:
        raise InputError(row.error)
    text = read_text(row, _names(options.question_field, form.question))
    wrong = [read_text(row, (name,)) for name in form.wrong_options]
    names = _names(options.answer_field, (*form.answer, *form.worked))
    answer = read_answer(row, names, require_answer or bool(wrong))
    if answer is not None and form.worked:
        answer = _end_of_solution(row, names, answer, form)
    if wrong:
        assert answer is not None
        text, answer = multiple_choice(text, answer, wrong, options.choice_seed)
    return Question(_identifier(row, _names(options.id_field, form.id)), text, answer)


def _end_of_solution(row: Row, names: Sequence[str], text: str, form: Benchmark) -> str:
    """Return the right answer that a field states, by itself or at the end of a solution."""
    name = next(name for name in names if name in row.values)
    answer = final_answer(text)
    if answer is None and (name in form.worked or "\n" in text.strip()):
        raise InputError(
            f"Expected a solution with the right answer after '####' or in \\boxed{{}} under "
            f"{name!r}, found {short(text)}."
        )
    return text if answer is None else answer


def _names(given: str | None, known: Sequence[str]) -> Sequence[str]:
    return known if given is None else (given,)


def read_text(row: Row, names: Sequence[str]) -> str:
    """Return the text of a row's field, under the first of several names that the row has.

    Raises:
        InputError: there is none, or it is no text.
    """
    value = _value(row, names)
    if not isinstance(value, str) or not value.strip():
        raise InputError(
            f"Expected a text under {_or(names)}, found {_found(row, names, 'question')}."
        )
    if len(value) > MOST_LINE_MIB * 2**20:
        raise InputError(
            f"Expected at most {MOST_LINE_MIB} Mi characters under {_or(names)}, found "
            f"{len(value):,}."
        )
    return unicode_text(value, names)


def read_answer(row: Row, names: Sequence[str], required: bool = True) -> str | None:
    """Return a row's answer as text; None where there is none and none is required.

    Raises:
        InputError: there is none, or it is neither text nor number.
    """
    answer = _value(row, names)
    if isinstance(answer, float) and math.isnan(answer):
        answer = None
    if answer is None or (isinstance(answer, str) and not answer.strip()):
        if required:
            found = _found(row, names, "answer")
            raise InputError(f"Expected an answer under {_or(names)}, found {found}.")
        return None
    infinite = isinstance(answer, float) and math.isinf(answer)
    if infinite or isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise InputError(
            f"Expected a text or a finite number under {_or(names)}, found {short(answer)}."
        )
    if isinstance(answer, float):
        answer = format(Decimal(repr(answer)), "f")  # 0.00002, not 2e-05
    return unicode_text(mend_escapes(str(answer)), names)


def _identifier(row: Row, names: Sequence[str]) -> str:
    value = _value(row, names)
    if value is None:
        return row.name
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise InputError(
            f"Expected a text or a whole number under {_or(names)}, found {short(value)}."
        )
    return unicode_text(str(value), names)


def unicode_text(text: str, names: Sequence[str]) -> str:
    """Refuse a text that holds half of a surrogate pair.

    Raises:
        InputError: the text, found under one of these names, has one.
    """
    found = lone_surrogate(text)
    if found is not None:
        raise InputError(
            f"Expected Unicode text under {_or(names)}, found the lone surrogate {found!a}."
        )
    return text


def _value(row: Row, names: Sequence[str]) -> Any:
    return next((row.values[name] for name in names if name in row.values), None)


def _or(names: Sequence[str]) -> str:
    return " or ".join(repr(name) for name in names)


def _found(row: Row, names: Sequence[str], kind: str) -> str:
    for name in names:
        if name in row.values:
            return short(row.values[name])
    if not row.values:
        return "an empty row"
    fields = ", ".join(repr(name) for name in list(row.values)[:8])
    return f"only {fields} (--{kind}-field can name another)"
