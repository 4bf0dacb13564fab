"""Groups of equal answers: numbered as traces are written, kept in the table, mended at the end."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from data_gen.summary import summarise
from data_gen.traces.directory import TraceDirectory
from data_gen.traces.groups import AnswerGroups, kept_vote
from data_gen.traces.table import read_part
from data_gen.traces.writer import TraceWriter
from step_infer.client.grading import Grader
from step_infer.client.kinds import AnswerOptions
from step_infer.errors import InputError

LENGTHS = ["5", "5 cm"]
"""One group, until there are more of another unit: "5" is equal to both, and they are not."""
METRES = ["5 m"] * 3


def row(question_id: str, trace_id: int, answer: str | None, right: bool = False) -> dict[str, Any]:
    return {
        "question_id": question_id,
        "trace_id": trace_id,
        "seed": 0,
        "question": "?",
        "ground_truth": "5 m",
        "prompt_token_ids": [1],
        "token_ids": [1, 2],
        "text": "…",
        "finish_reason": "stop",
        "extracted_answer": answer,
        "is_correct": None if answer is None else right,
        "boundary_positions": [],
    }


def write(
    path: Path, *parts: Sequence[dict[str, Any]], answers: AnswerOptions | None = None
) -> Any:
    """Write parts as a collection does, up to what comes after the last one."""
    with TraceWriter(path, {}) as out, Grader(answers=answers) as grader:
        groups = AnswerGroups(grader, out.read())
        for part in parts:
            numbers = groups.add(part)
            out.add_part(
                [r | {"answer_group": n} for r, n in zip(part, numbers, strict=True)], None
            )
        return groups.changed()


def groups_of(path: Path) -> list[list[int | None]]:
    found = TraceDirectory(path)
    found.verify()
    return [found.part(i)["answer_group"].to_pylist() for i in range(found.num_parts)]


def test_groups_are_numbered_in_each_question_in_the_order_of_the_table(tmp_path: Path) -> None:
    first = [row("a", 3, "7"), row("b", 0, "1/2"), row("a", 0, None), row("a", 1, r"\frac{14}{2}")]
    second = [row("a", 2, "8"), row("b", 1, "0.5"), row("b", 2, "7"), row("a", 4, "8.0")]
    assert write(tmp_path, first, second) == {}
    assert groups_of(tmp_path) == [[0, 0, None, 0], [1, 0, 1, 1]]


def test_an_answer_kind_says_what_is_one_group(tmp_path: Path) -> None:
    write(tmp_path, [row("a", 0, "7"), row("a", 1, "7.0")], answers=AnswerOptions("exact"))
    assert groups_of(tmp_path) == [[0, 1]]


def test_what_later_answers_tear_is_written_anew(tmp_path: Path) -> None:
    before = [row("a", i, answer) for i, answer in enumerate(LENGTHS)] + [row("b", 0, "5")]
    changed = write(tmp_path, before, [row("a", 2 + i, text) for i, text in enumerate(METRES)])
    assert groups_of(tmp_path) == [[0, 0, 0], [0, 0, 0]]
    assert changed == {"a": [0, 1, 0, 0, 0]}
    untouched = TraceDirectory(tmp_path).manifest["parts"][1]
    with TraceWriter(tmp_path, {}) as out:
        out.regroup(changed)
    assert groups_of(tmp_path) == [[0, 1, 0], [0, 0, 0]]
    found = TraceDirectory(tmp_path)
    assert found.manifest["parts"][1] == untouched
    files = {f"traces/{path.name}" for path in (tmp_path / "traces").iterdir()}
    assert files == {part["traces"]["file"] for part in found.manifest["parts"]}


def test_a_run_that_was_killed_before_the_groups_were_mended_mends_them(tmp_path: Path) -> None:
    write(tmp_path, [row("a", 0, "5"), row("a", 1, "5 cm")], [row("a", 2, "5 m")] * 3)
    for _ in range(2):  # a second time, nothing is left to be done
        with TraceWriter(tmp_path, {}) as out, Grader() as grader:
            out.regroup(AnswerGroups(grader, out.read()).changed())
        assert groups_of(tmp_path) == [[0, 1], [0, 0, 0]]


def test_an_unlisted_part_of_a_killed_regrouping_is_removed(tmp_path: Path) -> None:
    write(tmp_path, [row("a", 0, "5")])
    orphan = tmp_path / "traces" / "part-00000-regrouped.parquet"
    orphan.write_bytes(b"")
    TraceWriter(tmp_path, {}).close()
    assert not orphan.exists()
    assert groups_of(tmp_path) == [[0]]


@pytest.mark.parametrize("change", [{"answer_group": None}, {"extracted_answer": None}])
def test_a_part_whose_answers_and_groups_disagree_is_refused(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    rows = [row("a", 0, "5") | {"answer_group": 0}, row("a", 1, "5") | {"answer_group": 0} | change]
    with (
        TraceWriter(tmp_path, {}) as out,
        pytest.raises(InputError, match="an answer_group in every row with an extracted_answer"),
    ):
        out.add_part(rows, None)


def test_the_majority_is_that_of_the_kept_groups(tmp_path: Path) -> None:
    forms = ["500 cm", "5 m", "7", "7.0", "7/1", None]
    rows = [row("a", i, form, right=form in ("500 cm", "5 m")) for i, form in enumerate(forms)]
    more = [row("b", i, form, right=form == "5 m") for i, form in enumerate(["8", "5 m", "5 m"])]
    write(tmp_path, rows, more)
    summary = summarise(TraceDirectory(tmp_path))
    assert summary["majority_accuracy"] == 0.5
    assert summary["any_accuracy"] == 1.0
    kept = read_part(tmp_path / "traces" / "part-00000.parquet").to_pylist()
    assert kept_vote(kept).answer == "7"
    assert [voters for _, _, voters in kept_vote(kept).groups] == [(2, 3, 4), (0, 1)]
