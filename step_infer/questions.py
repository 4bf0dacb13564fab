"""Questions with their answers, from JSON lines."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from step_infer.errors import InputError


@dataclass(frozen=True)
class Question:
    """One question of a set."""

    id: str
    """The file's id, or "line-N" where it has none."""
    question: str
    answer: str | None
    """The ground truth; None where there is none."""


def load_questions(
    path: Path | str,
    question_field: str = "question",
    answer_field: str = "answer",
    id_field: str = "id",
    skip_bad_lines: bool = False,
    require_answer: bool = True,
    limit: int | None = None,
    on_skip: Callable[[str], None] | None = None,
) -> list[Question]:
    """Read one JSON object a line; empty lines are passed over.

    Args:
        path: the JSONL file, UTF-8.
        question_field: key of the question's text.
        answer_field: key of its answer, a text or a number.
        id_field: key of its id, a text or a whole number; it may be missing.
        skip_bad_lines: leave out lines that cannot be used instead of raising.
        require_answer: a line without an answer cannot be used.
        limit: read so many questions at most; None reads all.
        on_skip: called with what is wrong with a line that is left out.

    Raises:
        InputError: the file cannot be read, holds no question, or has a line that cannot be used;
            the message names file and line.
    """
    if limit is not None and limit < 1:
        raise InputError(f"Expected a limit of at least 1 question, found {limit}.")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(
            f"Expected a readable questions file {path}, found: {error.strerror}."
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"Expected UTF-8 text in the questions file {path}, found: {error}."
        ) from error
    questions: list[Question] = []
    first_lines: dict[str, int] = {}
    skipped = 0
    # Not splitlines: JSON texts may hold other line separators, such as U+2028, as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if limit is not None and len(questions) == limit:
            break
        if not line.strip():
            continue
        try:
            question = _parse(line, number, question_field, answer_field, id_field, require_answer)
            first = first_lines.setdefault(question.id, number)
            if first != number:
                raise InputError(
                    f"Expected each {id_field} once, found {question.id!r} on line {first} too."
                )
        except InputError as error:
            message = f"{path}:{number}: {error}"
            if not skip_bad_lines:
                raise InputError(
                    f"{message} Hint: mend the line, or leave out such lines with --skip-bad-lines."
                ) from error
            skipped += 1
            if on_skip is not None:
                on_skip(message)
            continue
        questions.append(question)
    if not questions:
        left_out = f" ({skipped} bad lines left out)" if skipped else ""
        raise InputError(f"Expected at least one question in {path}, found none{left_out}.")
    return questions


def _parse(
    line: str,
    number: int,
    question_field: str,
    answer_field: str,
    id_field: str,
    require_answer: bool,
) -> Question:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"Expected one JSON object a line, found: {error}.") from error
    except RecursionError as error:
        raise InputError("Expected one JSON object a line, found one nested too deep.") from error
    if not isinstance(value, dict):
        raise InputError(f"Expected a JSON object, found {_short(value)}.")
    question = value.get(question_field)
    if not isinstance(question, str) or not question.strip():
        raise InputError(
            f"Expected a text under {question_field!r}, found {_found(value, question_field)}."
        )
    answer = value.get(answer_field)
    if answer is None or (isinstance(answer, str) and not answer.strip()):
        if require_answer:
            raise InputError(
                f"Expected an answer under {answer_field!r}, found {_found(value, answer_field)}."
            )
        answer = None
    elif isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise InputError(
            f"Expected a text or a number under {answer_field!r}, found {_short(answer)}."
        )
    identifier = value.get(id_field)
    if identifier is None:
        identifier = f"line-{number}"
    elif isinstance(identifier, bool) or not isinstance(identifier, str | int) or identifier == "":
        raise InputError(
            f"Expected a text or a whole number under {id_field!r}, found {_short(identifier)}."
        )
    return Question(str(identifier), question, None if answer is None else str(answer))


def _found(value: dict[str, Any], field: str) -> str:
    if field in value:
        return _short(value[field])
    return f"only {', '.join(repr(key) for key in list(value)[:8])}" if value else "an empty object"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:39] + "…"
