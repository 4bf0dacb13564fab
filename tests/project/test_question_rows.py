"""benchmarks/question_rows.py: rows of several runs lie in one file, and say what records said."""

import json

import benchmark_script
import pytest
from made_records import record, trace

from step_eval.comparison import compare
from step_eval.report.words import NO_INTERVAL, PERCENT_SIGN, signed
from step_infer.errors import InputError

question_rows = benchmark_script.load("question_rows")


def records(method, answers, seconds, first=0):
    """A question for each list of answers, whose traces vote alike."""
    return [
        record(
            f"q{number}",
            [trace(n, answer, score=0.5, tokens=50 + number) for n, answer in enumerate(voters)],
            method=method,
            seconds=seconds + number,
        )
        for number, voters in enumerate(answers, first)
    ]


SC = records("sc", [["7", "7", "8"], ["8", "8", "7"], ["7", "9", None]], 10.0)
STEP = records("step", [["7", "7"], ["7", "7", "8"], ["9", "8", "9"]], 6.0)


def test_a_row_says_what_the_vote_made_of_the_question():
    row = question_rows.row_of(SC[1])
    assert (row["question_id"], row["repeat"], row["answer"], row["accuracy"]) == ("q1", 0, "8", 0)
    assert (row["coverage"], row["distinct"], row["finished"]) == (1, 2, 3)
    assert row["finished_per_second"] == pytest.approx(3 / 11)
    assert question_rows.row_of(SC[2])["distinct"] == 2


def test_rows_of_several_runs_lie_in_one_file_once(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert question_rows.add_rows(path, "KV 1", None, SC[:2]) == 2
    assert question_rows.add_rows(path, "KV 1", None, SC) == 1
    assert question_rows.add_rows(path, "KV 2", None, SC) == 3
    assert question_rows.add_rows(path, "KV 1", "sc-offload", SC) == 3
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({tuple(row[name] for name in question_rows.KEY) for row in rows}) == len(rows) == 9


def test_differences_are_those_of_the_records_on_the_questions_that_both_have(tmp_path):
    path = tmp_path / "rows.jsonl"
    alone = records("step", [["7"]], 100.0, first=9)  # which SC has not answered
    question_rows.add_rows(path, "KV 1", None, [*SC, *STEP, *alone])
    rows = question_rows.read_rows(path)
    by_method = {row["method"]: row for row in question_rows.summary(rows, "sc")}
    assert by_method["sc"]["questions"] == by_method["step"]["questions"] == 3
    assert by_method["sc"]["differences"] == {}
    expected = compare(SC, STEP, {"sc": "uniform", "step": "score"})
    for name, wanted in expected.differences.items():
        found = by_method["step"]["differences"][name]
        for part in ("difference", "relative"):
            interval = getattr(wanted, part)
            assert found[part] == (interval and pytest.approx(vars(interval)))
        assert found["verdict"] == wanted.verdict
    assert "3 questions" in question_rows.shown(by_method["step"])


def test_a_file_of_something_else_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"setting": "KV 1"}\n')
    with pytest.raises(InputError, match=r"Expected rows of questions in .*, found other lines"):
        question_rows.add_rows(path, "KV 1", None, SC)
    assert path.read_text() == '{"setting": "KV 1"}\n'
    for empty in (tmp_path / "nothing", tmp_path / "empty"):
        monkeypatch.setattr("sys.argv", ["x", "show", str(empty)])
        with pytest.raises(InputError, match=r"Expected rows in .*, found none"):
            question_rows.main()
        (tmp_path / "empty").touch()


def test_a_single_question_has_no_interval(tmp_path):
    path = tmp_path / "rows.jsonl"
    question_rows.add_rows(path, "KV 1", None, [SC[0], STEP[0]])
    (row,) = (
        r
        for r in question_rows.summary(question_rows.read_rows(path), "sc")
        if r["method"] == "step"
    )
    assert row["differences"]["seconds"]["difference"]["low"] is None
    line = next(line for line in question_rows.shown(row).splitlines() if "seconds " in line)
    assert line.endswith(
        f"6.00 ({NO_INTERVAL}); {signed(-40)}{PERCENT_SIGN} ({NO_INTERVAL}): no difference shown"
    )
