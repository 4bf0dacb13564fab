"""Benchmarks by name, on made-up rows of their form."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_gen.questions.benchmarks import BENCHMARKS, multiple_choice
from data_gen.questions.load import Question, QuestionOptions, load_questions
from step_infer.errors import InputError

GPQA_ROWS = [
    {
        "Record ID": f"rec{number}",
        "Question": f"Which body has mass {number} kg? ",
        "Correct Answer": f"right {number}\n",
        "Incorrect Answer 1": f"one {number}",
        "Incorrect Answer 2": f"two {number}",
        "Incorrect Answer 3": f"three {number}",
        "Subdomain": "Physics",
    }
    for number in range(40)
]


@pytest.mark.parametrize("name", ["aime_2025", "hmmt_feb_2024", "hmmt_feb_2025", "hmmt_2012_2023"])
def test_both_forms_of_a_competition_are_read(name: str, tmp_path: Path) -> None:
    options = QuestionOptions(benchmark=name)
    hub = {
        "problem_idx": 3,
        "problem": "Find $x$.",
        "answer": "\\frac12",
        "problem_type": ["Algebra"],
    }
    pq.write_table(pa.Table.from_pylist([hub]), tmp_path / "q.parquet")
    found = load_questions(tmp_path / "q.parquet", options).questions
    assert found == [Question("3", "Find $x$.", "\\frac12")]
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"question": "Find $x$.", "answer": "70"}))
    assert load_questions(path, options).questions == [Question("line-1", "Find $x$.", "70")]
    path.write_text(json.dumps({"text": "Find $x$.", "answer": "70"}))
    with pytest.raises(InputError, match="Expected a text under 'problem' or 'question'"):
        load_questions(path, options)
    other = QuestionOptions(benchmark=name, question_field="text")
    assert load_questions(path, other).questions == [Question("line-1", "Find $x$.", "70")]


@pytest.fixture
def gpqa(tmp_path: Path) -> Path:
    path = tmp_path / "gpqa_diamond.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(GPQA_ROWS[0]))
        writer.writeheader()
        writer.writerows(GPQA_ROWS)
    return path


def test_multiple_choice_asks_for_the_letter_of_the_right_option(gpqa: Path) -> None:
    found = load_questions(gpqa, QuestionOptions(benchmark="gpqa_diamond")).questions
    assert [question.id for question in found] == [row["Record ID"] for row in GPQA_ROWS]
    for number, question in enumerate(found):
        lines = question.question.splitlines()
        assert lines[0] == f"Which body has mass {number} kg?"
        assert f"{question.answer}) right {number}" in lines
        assert sorted(line[3:] for line in lines if line[1:3] == ") ") == sorted(
            f"{text} {number}" for text in ("right", "one", "two", "three")
        )
        assert lines[-1].endswith(r"(A, B, C or D), and nothing else, within \boxed{}.")
    assert {question.answer for question in found} == set("ABCD")


def test_the_order_of_options_follows_from_the_seed_and_the_question(gpqa: Path) -> None:
    def letters(**options: int) -> list[str | None]:
        found = load_questions(gpqa, QuestionOptions(benchmark="gpqa_diamond", **options))
        return [question.answer for question in found.questions]

    assert letters() == letters(choice_seed=0)
    assert letters() != letters(choice_seed=1)
    assert letters(limit=5) == letters()[:5]
    # Fixed for good: another order would make old records those of another benchmark.
    text, letter = multiple_choice("Q?", "r", ["a", "b", "c"], seed=0)
    assert text.startswith("Q?\n\nA) r\nB) c\nC) b\nD) a\n\nPut the letter")
    assert letter == "A"


def test_an_option_that_is_missing_is_named(gpqa: Path) -> None:
    text = gpqa.read_text().replace("two 3,", ",")
    gpqa.write_text(text)
    with pytest.raises(InputError, match="row 4: Expected a text under 'Incorrect Answer 2'"):
        load_questions(gpqa, QuestionOptions(benchmark="gpqa_diamond"))


def test_a_benchmark_by_its_name_alone_is_taken_from_the_hub() -> None:
    on_hub = {name for name, benchmark in BENCHMARKS.items() if benchmark.source is not None}
    assert set(BENCHMARKS) - on_hub == {"hmmt_2012_2023"}
    with pytest.raises(InputError, match="say --questions FILE --benchmark hmmt_2012_2023"):
        load_questions("hmmt_2012_2023")
    with pytest.raises(InputError, match="Expected --benchmark aime_2025 or none"):
        load_questions("aime_2025", QuestionOptions(benchmark="gpqa_diamond"))
    with pytest.raises(InputError, match="Expected a benchmark out of aime_2025, .*'aime'"):
        QuestionOptions(benchmark="aime")
