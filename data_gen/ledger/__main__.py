"""Writes ledger questions: `python -m data_gen.ledger --split test --count 200 --out q.jsonl`."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_gen.ledger.questions import iter_questions
from step_infer.cli.command import run
from step_infer.cli.options import parse_config
from step_infer.errors import InputError
from step_infer.storage.files import atomic_write


@dataclass(frozen=True)
class LedgerConfig:
    """Questions to write."""

    out: Path
    """JSONL file to write, one object with id, question and answer a line."""
    split: str = "test"
    """train, scorer-train or test; no question is in two of them."""
    count: int = 200
    """Number of questions."""
    seed: int = 0
    """Same seed, same questions."""


def write_questions(config: LedgerConfig) -> None:
    """Write the questions, atomically.

    Raises:
        InputError: no such split, fewer than one question, or an output that cannot be written.
    """
    if config.count < 1:
        raise InputError(f"Expected --count of at least 1 question, found {config.count}.")
    questions = list(itertools.islice(iter_questions(config.split, config.seed), config.count))
    with atomic_write(config.out, "w") as file:
        for q in questions:
            file.write(json.dumps({"id": q.id, "question": q.text, "answer": q.answer}) + "\n")
    print(f"wrote {len(questions)} {config.split} questions to {config.out}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    run(
        lambda: write_questions(
            parse_config(LedgerConfig, argv, "python -m data_gen.ledger", "Write ledger questions.")
        )
    )


if __name__ == "__main__":
    main()
