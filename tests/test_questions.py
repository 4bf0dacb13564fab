"""Reading questions from JSON lines."""

from pathlib import Path

import pytest

from step_infer.errors import InputError
from step_infer.questions import Question, load_questions


def write(folder: Path, *lines: str) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_ids_are_the_files_or_the_line_numbers(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '{"id": "a", "question": "1+1", "answer": "2"}',
        "",
        '{"question": "1+2", "answer": 3}',
        '{"id": 7, "question": "1+3", "answer": "4", "more": [1]}',
    )
    assert load_questions(path) == [
        Question("a", "1+1", "2"),
        Question("line-3", "1+2", "3"),
        Question("7", "1+3", "4"),
    ]


def test_fields_by_other_names(tmp_path: Path) -> None:
    path = write(tmp_path, '{"name": "a", "problem": "1+1", "solution": "2"}')
    found = load_questions(path, "problem", "solution", "name")
    assert found == [Question("a", "1+1", "2")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "x", ', "Expected one JSON object a line"),
        ("[1]", "Expected a JSON object"),
        ('{"answer": "1"}', "Expected a text under 'question', found only 'answer'"),
        ('{"question": " ", "answer": "1"}', "Expected a text under 'question'"),
        ('{"question": "x"}', "Expected an answer under 'answer', found only 'question'"),
        ('{"question": "x", "answer": null}', "Expected an answer under 'answer'"),
        ('{"question": "x", "answer": [1]}', "Expected a text or a number under 'answer'"),
        ('{"question": "x", "answer": "1", "id": [1]}', "Expected a text or a whole number"),
        ('{"question": "x", "answer": "1", "id": "first"}', "Expected each id once"),
    ],
)
def test_a_bad_line_is_named_or_left_out(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path, '{"id": "first", "question": "1+1", "answer": "2"}', "", line)
    with pytest.raises(InputError, match=rf"questions\.jsonl:3: {message}"):
        load_questions(path)
    left_out: list[str] = []
    found = load_questions(path, skip_bad_lines=True, on_skip=left_out.append)
    assert [question.id for question in found] == ["first"]
    assert len(left_out) == 1
    assert "questions.jsonl:3:" in left_out[0]


def test_answers_may_be_missing_when_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, '{"question": "x"}', '{"question": "y", "answer": "1"}')
    found = load_questions(path, require_answer=False)
    assert [question.answer for question in found] == [None, "1"]


def test_limit_stops_before_later_lines_are_judged(tmp_path: Path) -> None:
    path = write(tmp_path, '{"question": "x", "answer": "1"}', "{")
    assert len(load_questions(path, limit=1)) == 1
    with pytest.raises(InputError, match="Expected a limit of at least 1"):
        load_questions(path, limit=0)


def test_line_separators_inside_a_text_do_not_split_it(tmp_path: Path) -> None:
    path = write(tmp_path, '{"question": "a\u2028b", "answer": "1"}')
    assert load_questions(path)[0].question == "a\u2028b"


def test_no_questions_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Expected at least one question"):
        load_questions(write(tmp_path, "", " "))
    with pytest.raises(InputError, match="1 bad lines left out"):
        load_questions(write(tmp_path, "{"), skip_bad_lines=True)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Expected a readable questions file"):
        load_questions(tmp_path / "none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes('{"question": "é"}'.encode("latin-1"))
    with pytest.raises(InputError, match="Expected UTF-8"):
        load_questions(tmp_path / "latin.jsonl")
