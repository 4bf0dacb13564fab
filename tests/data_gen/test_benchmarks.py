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


GSM8K_ROW = {"question": "Two and three?", "answer": "2+3=<<2+3=5>>5\nSo 5.\n#### 1,005"}
MATH_ROW = {
    "problem": "Find $x$.",
    "level": "Level 2",
    "type": "Algebra",
    "solution": r"First $\boxed{7}$ is tried. In the end $x = \boxed{\frac{1}{2}}$.",
}


@pytest.mark.parametrize(
    ("name", "row", "found"),
    [
        ("gsm8k", GSM8K_ROW, Question("line-1", "Two and three?", "1,005")),
        ("gsm8k", GSM8K_ROW | {"answer": "5"}, Question("line-1", "Two and three?", "5")),
        ("math", MATH_ROW, Question("line-1", "Find $x$.", r"\frac{1}{2}")),
        ("math", {"question": "Q?", "answer": "(1,2)"}, Question("line-1", "Q?", "(1,2)")),
        (
            "math_500",
            MATH_ROW | {"answer": r"\frac12", "unique_id": "test/algebra/1.json"},
            Question("test/algebra/1.json", "Find $x$.", r"\frac12"),
        ),
    ],
)
def test_the_truth_is_what_a_worked_solution_ends_with(
    name: str, row: dict[str, str], found: Question, tmp_path: Path
) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    options = QuestionOptions(benchmark=name)
    assert load_questions(tmp_path / "q.jsonl", options).questions == [found]
    assert options.form("q.jsonl").answers == "math"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gsm8k", {"answer": "2+3=5\nSo 5."}),
        ("gsm8k", {"answer": "2+3=5\n####"}),
        ("math", {"solution": "The answer is 5."}),
        ("math", {"solution": r"An empty \boxed{}."}),
    ],
)
def test_a_solution_without_its_answer_is_named(
    name: str, change: dict[str, str], tmp_path: Path
) -> None:
    row = GSM8K_ROW if name == "gsm8k" else MATH_ROW
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | change))
    with pytest.raises(InputError, match=r"q.jsonl:2: Expected a solution with .* after '####' or"):
        load_questions(path, QuestionOptions(benchmark=name))
    skipping = QuestionOptions(benchmark=name, skip_bad_lines=True)
    notes: list[str] = []
    assert len(load_questions(path, skipping, note=notes.append).questions) == 1
    assert len(notes) == 1


def test_a_benchmark_by_its_name_alone_is_taken_from_the_hub() -> None:
    on_hub = {name for name, benchmark in BENCHMARKS.items() if benchmark.source is not None}
    assert set(BENCHMARKS) - on_hub == {"hmmt_2012_2023"}
    with pytest.raises(InputError, match="say --questions FILE --benchmark hmmt_2012_2023"):
        load_questions("hmmt_2012_2023")
    with pytest.raises(InputError, match="Expected --benchmark aime_2025 or none"):
        load_questions("aime_2025", QuestionOptions(benchmark="gpqa_diamond"))
    with pytest.raises(InputError, match="Expected a benchmark out of aime_2025, .*'aime'"):
        QuestionOptions(benchmark="aime")
