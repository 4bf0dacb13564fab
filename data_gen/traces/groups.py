"""The groups of equal answers, which are found once and kept in the traces table."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_gen.traces.directory import TraceDirectory
from step_infer.cli.progress import track
from step_infer.client.answers import Vote, vote
from step_infer.client.grading import Grader

GROUP_COLUMNS = ("question_id", "extracted_answer", "answer_group")
"""Columns that say which traces of a question have the same answer."""


class AnswerGroups:
    """Numbers the groups of a directory's answers, while its traces are written.

    A question's groups are numbered from 0, in the order in which the table has their first traces.
    Where equality is not transitive, a later answer may change what earlier ones belong to:
    `changed` says what the table should hold in the end.
    """

    def __init__(self, grader: Grader, written: TraceDirectory) -> None:
        """Go on with what is written.

        Args:
            grader: says which answers are equal.
            written: the directory.
        """
        self._grader = grader
        self._answers: dict[str, list[str | None]] = {}
        self._numbers: dict[str, list[int | None]] = {}
        for part in range(written.num_parts):
            for question_id, answer, number in _columns(written, part):
                self._answers.setdefault(question_id, []).append(answer)
                self._numbers.setdefault(question_id, []).append(number)
        # A run that was killed may have left groups that its last traces changed.
        self._unsure = set() if written.complete else set(self._answers)
        self._changed: set[str] = set()

    def answers(self, question_id: str) -> list[str]:
        """Return the answers of a question's written traces."""
        return [answer for answer in self._answers.get(question_id, ()) if answer is not None]

    def add(self, rows: Sequence[Mapping[str, Any]]) -> list[int | None]:
        """Take in traces that are written next, and return the number of each one's group.

        Waits for comparisons that are open. None is the number of a trace without an answer.

        Args:
            rows: their columns, `question_id` and `extracted_answer` among them.
        """
        for row in rows:
            self._answers.setdefault(row["question_id"], []).append(row["extracted_answer"])
        fresh: dict[str, Iterator[int | None]] = {}
        for question_id in dict.fromkeys(row["question_id"] for row in rows):
            before = len(self._numbers.get(question_id, ()))
            fresh[question_id] = iter(self._number(question_id)[before:])
        return [next(fresh[row["question_id"]]) for row in rows]

    def changed(self) -> dict[str, list[int | None]]:
        """Return the numbers of the questions whose rows in the table are, or may be, others."""
        for question_id in track(self._unsure, len(self._unsure), "questions grouped", delay_s=2):
            self._number(question_id)
        self._unsure = set()
        return {question_id: self._numbers[question_id] for question_id in self._changed}

    def _number(self, question_id: str) -> list[int | None]:
        answers, before = self._answers[question_id], self._numbers.get(question_id, [])
        numbers: list[int | None] = [None] * len(answers)
        found = vote(answers, equal=self._grader.same(answers)).groups
        groups = sorted(voters for _, _, voters in found)
        for number, voters in enumerate(groups):
            for voter in voters:
                numbers[voter] = number
        if numbers[: len(before)] != before:
            self._changed.add(question_id)
        self._numbers[question_id] = numbers
        return numbers


def _columns(written: TraceDirectory, part: int) -> Iterator[tuple[Any, ...]]:
    table = written.part(part, GROUP_COLUMNS)
    return zip(*(table[name].to_pylist() for name in GROUP_COLUMNS), strict=True)


def kept_vote(rows: Sequence[Mapping[str, Any]]) -> Vote:
    """Return the vote of a question's traces, one each, by the groups that the table keeps.

    Args:
        rows: the question's traces, in the order of their numbers; of each `extracted_answer` and
            `answer_group`.
    """
    group_of = {row["extracted_answer"]: row["answer_group"] for row in rows}
    answers = [row["extracted_answer"] for row in rows]
    return vote(answers, equal=lambda first, second: group_of[first] == group_of[second])
