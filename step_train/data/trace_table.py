"""Which traces a scorer learns from: read, filtered, split by question, sub-sampled.

Works on the traces table alone; no feature is read here. Axes: N traces, S steps, Q questions.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from data_gen.traces.directory import TraceDirectory
from step_infer.errors import InputError

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

TENTHS = 10
"""Parts that a trace's progress is divided into."""

SPLITS = ("train", "val", "test")

_COLUMNS = (
    "question_id",
    "finish_reason",
    "extracted_answer",
    "is_correct",
    "shard",
    "row_start",
    "num_steps",
)


@dataclass(frozen=True)
class TraceTable:
    """Usable traces, ordered as their features lie on disk; every step has its trace's label."""

    questions: tuple[str, ...]
    """Question ids [Q], sorted; also those without a trace in this selection."""
    question_N: Ints
    """Each trace's question, an index into `questions`."""
    correct_N: Bools
    """Whether the trace's final answer is right."""
    shard_N: Ints
    """Feature shard that holds the trace."""
    row_start_N: Ints
    """Row of the trace's first step in its shard."""
    steps_N: Ints
    """How many steps the trace has, at least 1."""

    def __len__(self) -> int:
        return len(self.question_N)

    @property
    def num_steps(self) -> int:
        """Steps S of all traces."""
        return int(self.steps_N.sum())

    @property
    def positive_steps(self) -> int:
        """Steps of right traces."""
        return int(self.steps_N[self.correct_N].sum())

    @cached_property
    def first_step_N(self) -> Ints:
        """Where each trace's steps begin in the [S] arrays."""
        return np.cumsum(self.steps_N) - self.steps_N

    @cached_property
    def trace_S(self) -> Ints:
        """Each step's trace."""
        return np.repeat(np.arange(len(self)), self.steps_N)

    @cached_property
    def question_S(self) -> Ints:
        """Each step's question."""
        return self.question_N[self.trace_S]

    @cached_property
    def label_S(self) -> Bools:
        """Each step's label: whether its trace is right."""
        return self.correct_N[self.trace_S]

    @cached_property
    def step_S(self) -> Ints:
        """Each step's number within its trace, from 0."""
        return np.arange(self.num_steps) - self.first_step_N[self.trace_S]

    @cached_property
    def tenth_S(self) -> Ints:
        """Each step's progress: which tenth of its trace's steps it lies in, 0 to 9."""
        return (TENTHS * (self.step_S + 1) - 1) // self.steps_N[self.trace_S]

    def traces_of(self, step: Ints) -> Ints:
        """Return the trace of some steps, given by number; makes no array of all steps."""
        return np.searchsorted(self.first_step_N, step, side="right") - 1

    def steps_between(self, first: int, last: int) -> Bools:
        """Return which steps have a number from `first` to `last`, counted from 1 [S]."""
        return (self.step_S + 1 >= first) & (self.step_S + 1 <= last)

    def select(self, keep: Ints | Bools) -> "TraceTable":
        """Return some of the traces, by index or by mask; their order on disk is kept."""
        chosen = np.flatnonzero(keep) if keep.dtype == np.bool_ else np.sort(keep)
        return TraceTable(
            self.questions,
            self.question_N[chosen],
            self.correct_N[chosen],
            self.shard_N[chosen],
            self.row_start_N[chosen],
            self.steps_N[chosen],
        )

    def of_questions(self, questions: Ints) -> "TraceTable":
        """Return the traces of some questions, given by index."""
        return self.select(np.isin(self.question_N, questions))

    def summary(self) -> dict[str, int]:
        """Return counts for manifests and cards."""
        return {
            "questions": len(np.unique(self.question_N)),
            "traces": len(self),
            "right_traces": int(self.correct_N.sum()),
            "steps": self.num_steps,
            "right_steps": self.positive_steps,
        }


def read_traces(directory: TraceDirectory) -> tuple[TraceTable, dict[str, int]]:
    """Read the traces that have a label and at least one boundary.

    Returns:
        The traces, and how many were skipped, by reason: "no boundary", "pruned", "no answer" or
        "no label" (an answer without a verdict).

    Raises:
        InputError: there are no features, or no trace is usable.
    """
    if not directory.num_parts:
        raise InputError(
            f"Expected traces in {directory.path}, found none. Hint: make them with step-collect."
        )
    parts = []
    skipped = {"no boundary": 0, "pruned": 0, "no answer": 0, "no label": 0}
    for index in range(directory.num_parts):
        table = directory.part(index, _COLUMNS)
        correct = table["is_correct"].to_numpy()
        steps = table["num_steps"].to_numpy()
        reasons = {
            "no boundary": steps == 0,
            "pruned": table["finish_reason"].to_numpy() == "pruned",
            "no answer": table["extracted_answer"].is_null().to_numpy(),
            "no label": table["is_correct"].is_null().to_numpy(),
        }
        usable = np.ones(len(table), dtype=bool)
        for reason, mask in reasons.items():
            skipped[reason] += int((mask & usable).sum())
            usable &= ~mask
        if table["shard"].null_count:
            directory.shard(index)  # raises: made without features
        parts.append(
            (
                table["question_id"].to_numpy()[usable],
                correct[usable].astype(bool),
                table["shard"].to_numpy()[usable].astype(np.int64),
                table["row_start"].to_numpy()[usable].astype(np.int64),
                steps[usable].astype(np.int64),
            )
        )
    ids, correct_N, shard_N, row_start_N, steps_N = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    if not len(ids):
        reasons_text = ", ".join(f"{count} {reason}" for reason, count in skipped.items() if count)
        raise InputError(
            f"Expected traces with boundaries, an answer and a label in {directory.path}, "
            f"found none ({reasons_text}). Hint: collect traces of questions that have answers, "
            "with room to come to their end (--sampling.max-tokens)."
        )
    questions, question_N = np.unique(ids.astype(str), return_inverse=True)
    order = np.lexsort((row_start_N, shard_N))
    table = TraceTable(
        tuple(map(str, questions)),
        question_N.astype(np.int64)[order],
        correct_N[order],
        shard_N[order],
        row_start_N[order],
        steps_N[order],
    )
    return table, skipped


def split_questions(
    table: TraceTable,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    test_seed: int | None = None,
) -> dict[str, TraceTable]:
    """Split traces by question, at random: no question is in two splits.

    Questions of a split are rounded to the nearest number, at least one each. With a `test_seed`,
    that alone chooses the test questions, and `seed` divides the others.

    Raises:
        InputError: fractions out of range, fewer than three questions, or a split without both
            right and wrong traces.
    """
    if not (val_fraction > 0 and test_fraction > 0 and val_fraction + test_fraction < 1):
        raise InputError(
            "Expected --val-fraction and --test-fraction above 0 and below 1 together, "
            f"found {val_fraction} and {test_fraction}."
        )
    count = len(table.questions)
    if count < len(SPLITS):
        raise InputError(
            f"Expected traces of at least 3 questions, one a split, found {count}. "
            "Hint: collect more questions."
        )
    num_val = max(1, round(count * val_fraction))
    num_test = max(1, round(count * test_fraction))
    num_val = min(num_val, count - num_test - 1) or 1
    num_test = min(num_test, count - num_val - 1)
    order = np.random.default_rng(seed if test_seed is None else test_seed).permutation(count)
    if test_seed is not None:
        np.random.default_rng([seed, 2]).shuffle(order[: count - num_test])
    bounds = [count - num_val - num_test, count - num_test]
    pieces = np.split(order, bounds)
    splits = {name: table.of_questions(piece) for name, piece in zip(SPLITS, pieces, strict=True)}
    require_both_classes(table, "the traces directory")
    for name, split in splits.items():
        require_both_classes(
            split,
            f"the {name} split",
            "collect more questions, give the split more of them (--val-fraction, "
            "--test-fraction), or choose another seed",
        )
    return splits


def require_both_classes(
    table: TraceTable,
    name: str,
    hint: str = "collect traces of more questions; if all are wrong, check that the sampling and "
    "--system are the model's own and the answers right",
) -> None:
    """Refuse traces among which nothing can be told apart.

    Args:
        table: the traces.
        name: where they are, for the message.
        hint: what to do.

    Raises:
        InputError: all traces are right, or all are wrong.
    """
    right = int(table.correct_N.sum())
    if right in (0, len(table)):
        raise InputError(
            f"Expected right and wrong traces in {name}, found {right} right and "
            f"{len(table) - right} wrong. Hint: {hint}."
        )


def balance(table: TraceTable, max_traces_per_class: int | None, seed: int) -> TraceTable:
    """Return at most so many right and so many wrong traces, drawn at random (paper: 5,000)."""
    if max_traces_per_class is None:
        return table
    if max_traces_per_class < 1:
        raise InputError(
            f"Expected --max-traces-per-class of at least 1, found {max_traces_per_class}."
        )
    generator = np.random.default_rng([seed, 1])
    kept = []
    for wanted in (False, True):
        found = np.flatnonzero(table.correct_N == wanted)
        kept.append(generator.permutation(found)[:max_traces_per_class])
    return table.select(np.concatenate(kept))
