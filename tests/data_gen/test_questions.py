"""Reading questions: JSON lines, CSV, Parquet, data sets of the hub."""

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from places import ROOT

from data_gen.questions.load import Question, QuestionOptions, load_questions
from step_infer.errors import InputError


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
    assert load_questions(path).questions == [
        Question("a", "1+1", "2"),
        Question("line-3", "1+2", "3"),
        Question("7", "1+3", "4"),
    ]


def test_fields_by_other_names(tmp_path: Path) -> None:
    path = write(tmp_path, '{"name": "a", "problem": "1+1", "solution": "2"}')
    options = QuestionOptions(question_field="problem", answer_field="solution", id_field="name")
    assert load_questions(path, options).questions == [Question("a", "1+1", "2")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "x", ', "Expected one JSON object a line"),
        ("[1]", "Expected a JSON object"),
        ('{"id": "a"}{"id": "b"}', "Expected one JSON object a line, found another from column 12"),
        ('{"answer": "1"}', "Expected a text under 'question', found only 'answer'"),
        ('{"question": " ", "answer": "1"}', "Expected a text under 'question'"),
        ('{"question": "x"}', "Expected an answer under 'answer', found only 'question'"),
        ('{"question": "x", "answer": null}', "Expected an answer under 'answer'"),
        ('{"question": "x", "answer": [1]}', "Expected a text or a finite number under 'answer'"),
        ('{"question": "x", "answer": 1e400}', "Expected a text or a finite number .*Infinity"),
        ('{"question": "x", "answer": ' + "1" * 5000 + "}", "Expected one JSON object a line"),
        ('{"question": "x", "answer": "1", "id": [1]}', "Expected a text or a whole number"),
        ('{"question": "x", "answer": "1", "id": "first"}', "Expected each id once"),
        (r'{"question": "\ud83d", "answer": "1"}', "Expected Unicode text under 'question', found"),
        (r'{"question": "x", "answer": "a\ud83d"}', "Expected Unicode text under 'answer'"),
        (r'{"question": "x", "answer": "1", "id": "\ud83d"}', "Expected Unicode text under 'id'"),
    ],
)
def test_a_bad_line_is_named_or_left_out(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path, '{"id": "first", "question": "1+1", "answer": "2"}', "", line)
    with pytest.raises(InputError, match=rf"questions\.jsonl:3: {message}"):
        load_questions(path)
    notes: list[str] = []
    found = load_questions(path, QuestionOptions(skip_bad_lines=True), note=notes.append)
    assert [question.id for question in found.questions] == ["first"]
    assert len(found.skipped) == 1
    assert "questions.jsonl:3:" in found.skipped[0]
    assert notes == [f"Left out 1 rows that cannot be used; the first: {found.skipped[0]}"]


def test_numbers_are_written_in_full(tmp_path: Path) -> None:
    numbers = {"0.000031": "0.000031", "3.1e-7": "0.00000031", "2e17": "200000000000000000"}
    numbers |= {"0.1": "0.1", "-12.50": "-12.5", "12345678901234567890": "12345678901234567890"}
    path = write(tmp_path, *(f'{{"question": "x", "answer": {number}}}' for number in numbers))
    found = [question.answer for question in load_questions(path).questions]
    assert found == list(numbers.values())
    assert all(float(text) == float(number) for number, text in numbers.items())


def test_numbers_of_a_parquet_file_are_written_in_full(tmp_path: Path) -> None:
    path = tmp_path / "q.parquet"
    rows = [{"question": "x", "answer": 4e-6}, {"question": "y", "answer": 7e20}]
    pq.write_table(pa.Table.from_pylist(rows), path)
    found = [question.answer for question in load_questions(path).questions]
    assert found == ["0.000004", "700000000000000000000"]


def test_latex_whose_backslashes_json_swallowed_is_mended(tmp_path: Path) -> None:
    # One backslash where JSON wants two: a form feed, a tab, a backspace, a line feed.
    lines = [
        r'{"question": "x", "answer": "\frac{3}{7}"}',
        r'{"question": "x", "answer": "2\text{ m}"}',
        r'{"question": "x", "answer": "\boxed{5}"}',
        r'{"question": "x", "answer": "a\neq b"}',
    ]
    found = [question.answer for question in load_questions(write(tmp_path, *lines)).questions]
    assert found == [r"\frac{3}{7}", r"2\text{ m}", r"\boxed{5}", r"a\neq b"]


def test_answers_may_be_missing_when_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, '{"question": "x"}', '{"question": "y", "answer": "1"}')
    found = load_questions(path, require_answer=False)
    assert [question.answer for question in found.questions] == [None, "1"]


def test_limit_stops_before_later_lines_are_judged(tmp_path: Path) -> None:
    path = write(tmp_path, '{"question": "x", "answer": "1"}', "{")
    assert len(load_questions(path, QuestionOptions(limit=1)).questions) == 1
    with pytest.raises(InputError, match="Expected --limit of at least 1 question, found 0"):
        QuestionOptions(limit=0)


def test_line_separators_inside_a_text_do_not_split_it(tmp_path: Path) -> None:
    path = write(tmp_path, '{"question": "a\u2028b", "answer": "1"}')
    assert load_questions(path).questions[0].question == "a\u2028b"


def test_a_line_that_is_too_long_is_left_out_alone(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    good = '{"question": "1+1", "answer": "2"}\n'
    path.write_text(good + '{"question": "' + "1" * 2**26 + '"}\n' + good)
    tracemalloc.start()
    found = load_questions(path, QuestionOptions(skip_bad_lines=True))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [question.id for question in found.questions] == ["line-1", "line-3"]
    assert found.skipped == [f"{path}:2: Expected at most 16 MiB in a line, found more."]
    assert peak < 2**26


def test_no_questions_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Expected at least one question"):
        load_questions(write(tmp_path, "", " "))
    with pytest.raises(InputError, match="1 bad rows left out"):
        load_questions(write(tmp_path, "{"), QuestionOptions(skip_bad_lines=True))


ROWS = [
    {"number": 7, "problem": "1+1\n= ?", "solution": "02"},
    {"number": 8, "problem": "1/3", "solution": "\\frac{1}{3}"},
]
FIELDS = QuestionOptions(question_field="problem", answer_field="solution", id_field="number")
FOUND = [Question("7", "1+1\n= ?", "02"), Question("8", "1/3", "\\frac{1}{3}")]


def test_a_csv_file_keeps_text_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text(
        '\ufeffnumber,problem,solution\r\n7,"1+1\n= ?",02\r\n\r\n8,1/3,\\frac{1}{3}\r\n'
    )
    assert load_questions(path, FIELDS).questions == FOUND


def check_refused(path: Path, text: str, message: str) -> None:
    """Check that a file of questions with this text is refused with a message."""
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_questions(path)


def test_a_column_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    message = "Expected each column once .* found 'answer' more"
    check_refused(path, "question,answer,,,answer\n1+1,2,,,3\n", message)
    path.write_text("question,answer,,\n1+1,2,,\n")
    assert load_questions(path).questions == [Question("row-1", "1+1", "2")]


def test_a_field_that_is_not_there_names_the_option_for_it(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    message = r"found only 'Problem', 'answer' \(--question-field can"
    check_refused(path, "Problem,answer\n1+1,2\n", message)
    message = r"only 'question', 'solution' \(--answer-field can"
    check_refused(path, "question,solution\n1+1,2\n", message)


def test_a_parquet_file_is_read_with_its_types(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "q.parquet")
    assert load_questions(tmp_path / "q.parquet", FIELDS).questions == FOUND
    rows = [{"question": "1+1", "answer": 2}, {"question": "1+2", "answer": 3}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "q.parquet")
    found = load_questions(tmp_path / "q.parquet").questions
    assert found == [Question("row-1", "1+1", "2"), Question("row-2", "1+2", "3")]


def test_a_bad_row_of_a_table_is_named(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    message = r"q\.csv, row 2: Expected 2 columns .*, found 1"
    check_refused(path, "question,answer\n1+1,2\n1+2\n", message)
    message = r"q\.csv, row 1: Expected an answer under 'answer'"
    check_refused(path, "question,answer\n1+1,\n", message)
    message = r"Expected CSV in UTF-8 in .*q\.csv, found: .*line 3"
    check_refused(path, 'question,answer\n"1+1,2\n', message)
    rows = [{"question": "1+1", "answer": "2"}, {"question": None, "answer": "3"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "q.parquet")
    with pytest.raises(InputError, match=r"q\.parquet, row 2: Expected a text under 'question'"):
        load_questions(tmp_path / "q.parquet")


CACHE = """
import json, os, sys
from datasets import Dataset
from datasets.packaged_modules.parquet.parquet import Parquet

Dataset.from_list(json.loads(sys.argv[1])).to_parquet("rows.parquet")
for config in ("easy", "hard"):
    files = {"train": "rows.parquet", "validation": "rows.parquet"}
    builder = Parquet(dataset_name="sums", config_name=config, data_files=files)
    cache = os.path.join(os.environ["HF_HOME"], "datasets", "someone___sums", config)
    builder.download_and_prepare(os.path.join(cache, "0.0.0", "0" * 40))
"""
LOAD = """
import sys
from step_infer.errors import InputError
from data_gen.questions.load import QuestionOptions, load_questions

options = QuestionOptions(question_field="problem", answer_field="solution", id_field="number")
for source in sys.argv[1:]:
    try:
        found = load_questions(source, options)
        print([(q.id, q.answer) for q in found.questions], found.sha256[:8])
    except InputError as error:
        print(error)
"""


def test_a_data_set_of_the_hub_by_configuration_and_split(tmp_path: Path) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}

    def python(code: str, *arguments: str) -> list[str]:
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=tmp_path,
            env=environment | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.splitlines()

    # As the hub's client leaves it in its cache.
    python(CACHE, json.dumps(ROWS))
    found = python(
        LOAD,
        "someone/sums:easy@train",
        "someone/sums:hard@train",
        "someone/sums:easy",
        "someone/sums:easy@dev",
        "someone/none",
    )
    assert found[0].startswith(r"[('7', '02'), ('8', '\\frac{1}{3}')] ")
    assert found[1] == found[0]
    assert "Expected one split of someone/sums:easy, found train, validation." in found[2]
    assert "Hint: say someone/sums@train" in found[2]
    assert "Expected a file or a data set of the hub at someone/sums:easy@dev, found: " in found[3]
    assert "Expected a file or a data set of the hub at someone/none, found: " in found[4]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Expected a readable questions file"):
        load_questions(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="Expected a readable questions file data/none.jsonl"):
        load_questions("data/none.jsonl")
    with pytest.raises(InputError, match="found a folder. Hint: give one of its files"):
        load_questions(tmp_path)
    (tmp_path / "latin.jsonl").write_bytes('{"question": "é"}'.encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.jsonl:1: Expected UTF-8"):
        load_questions(tmp_path / "latin.jsonl")
    (tmp_path / "latin.csv").write_bytes("question,answer\né,1".encode("latin-1"))
    with pytest.raises(InputError, match="Expected CSV in UTF-8"):
        load_questions(tmp_path / "latin.csv")
    (tmp_path / "text.parquet").write_text("text")
    with pytest.raises(InputError, match="Expected Parquet in .*text.parquet, found: Parquet"):
        load_questions(tmp_path / "text.parquet")
    (tmp_path / "empty.parquet").touch()
    with pytest.raises(InputError, match="Expected Parquet in .*empty.parquet"):
        load_questions(tmp_path / "empty.parquet")
