"""What an evaluation keeps of each question: one line of JSON, written when the question is done.

All statistics are computed from these records, so that a run that was stopped can go on, and runs
that shared the questions can be joined.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from step_infer.client.deciding import FINISHED
from step_infer.client.trace import PRUNED_REASONS, STOPPED
from step_infer.errors import InputError
from step_infer.storage.files import atomic_write, full_disk_named
from step_infer.wire import CLOSED_REASONS

RECORD_SCHEMA_VERSION = 1
RECORDS_FOLDER = "records"


@dataclass
class TraceRecord:
    """One trace of T tokens and S step boundaries. Times count from the question's submission."""

    trace_id: int
    seed: int | None
    tokens: int
    """Generated tokens T."""
    finish_reason: str
    """As in `Trace.finish_reason`."""
    answer: str | None
    """The final answer; None without one, and for a trace that was stopped."""
    group: int | None
    """Index of its group of equal answers in `QuestionRecord.answers`; None if it does not vote."""
    correct: bool | None
    """Whether the answer is right; None without an answer, or where it could not be compared."""
    score: float | None
    """Trace score."""
    positions: list[int]
    """Step boundaries, as indices of generated tokens [S]."""
    scores: list[float | None]
    """Step scores [S], or empty."""
    prefix_hashes: list[int]
    """CRC-32 of all tokens up to each boundary [S]."""
    submitted_s: float
    finished_s: float
    lowest_confidence: float | None = None
    """Lowest group confidence, where the method looked at it."""
    mean_confidence: float | None = None
    """Mean token confidence, where the engine recorded it."""
    text: str | None = None
    """The whole text, where it was asked for."""
    parent: int | None = None
    """Number of the trace that it branches from; None for a trace of its own."""
    inherited: int = 0
    """Of its tokens, those that its parent generated."""
    cached_tokens: int | None = None
    """Of a branch: tokens of its prompt and of what it inherited that the prefix cache had."""

    @property
    def own_tokens(self) -> int:
        """Tokens that it generated itself."""
        return self.tokens - self.inherited

    @property
    def pruned(self) -> bool:
        """Whether the method stopped the trace for what it was."""
        return self.finish_reason in PRUNED_REASONS

    @property
    def closed(self) -> bool:
        """Whether the trace ended, or did not begin, because its question was closed."""
        return self.finish_reason in CLOSED_REASONS

    @property
    def finished(self) -> bool:
        """Whether nothing stopped the trace."""
        return self.finish_reason not in STOPPED


@dataclass
class AnswerRecord:
    """One group of equal answers."""

    answer: str
    correct: bool | None
    """None where it could not be compared with the truth."""


@dataclass
class KvSeries:
    """The engine's counters over time, for one question; times count from its submission."""

    time_s: list[float] = field(default_factory=list)
    kv_use: list[float] = field(default_factory=list)
    """Part of the KV cache in use, in [0, 1]."""
    running: list[int] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    preemptions: list[int] = field(default_factory=list)
    """Since the question's submission."""


@dataclass
class QuestionRecord:
    """One question, answered once by one method."""

    method: str
    repeat: int
    question_id: str
    truth: str | None
    prompt_tokens: int
    seconds: float
    """From submission to the last trace."""
    preemptions: int
    peak_kv_use: float
    """Highest reading, in [0, 1]."""
    running_trace_s: float
    """Sum over traces of the seconds in which they ran."""
    waiting_trace_s: float
    """Sum over traces of the seconds in which they waited for memory."""
    kv_capacity_tokens: int
    answers: list[AnswerRecord]
    traces: list[TraceRecord]
    series: KvSeries | None = None
    ended: str = FINISHED
    """"finished" when all traces had ended, "decided" or "over_budget"."""
    schema_version: int = RECORD_SCHEMA_VERSION

    @property
    def key(self) -> tuple[int, str]:
        """Repeat and question: what a method has one record of."""
        return self.repeat, self.question_id

    def to_json(self) -> str:
        """Return the record as one line of JSON."""
        value = _rounded(dataclasses.asdict(self))
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> "QuestionRecord":
        """Read a line.

        Raises:
            InputError: it is not such a record, or one of another schema version.
        """
        try:
            value: dict[str, Any] = json.loads(line)
            if value["schema_version"] != RECORD_SCHEMA_VERSION:
                raise InputError(
                    f"Expected record schema_version {RECORD_SCHEMA_VERSION}, "
                    f"found {value['schema_version']}. Hint: run step-eval anew, in another --out."
                )
            value["answers"] = [AnswerRecord(**answer) for answer in value["answers"]]
            value["traces"] = [TraceRecord(**trace) for trace in value["traces"]]
            if value.get("series") is not None:
                value["series"] = KvSeries(**value["series"])
            return cls(**value)
        except InputError:
            raise
        except (KeyError, TypeError, RecursionError, ValueError) as error:
            raise InputError(
                f"Expected a question record, found: {error!r:.200}. "
                "Hint: remove the line, and give step-eval the same command again."
            ) from error


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value


class RecordStore:
    """The records of one output directory: DIR/records/METHOD-rREPEAT.jsonl."""

    def __init__(self, out: Path | str) -> None:
        self.folder = Path(out) / RECORDS_FOLDER

    def path(self, method: str, repeat: int) -> Path:
        """Return the file of one method and repeat."""
        return self.folder / f"{method}-r{repeat}.jsonl"

    def append(self, record: QuestionRecord) -> None:
        """Add a record; it is on disk when this returns.

        Raises:
            InputError: the disk is full.
        """
        path = self.path(record.method, record.repeat)
        with full_disk_named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._append(path, record)

    def _append(self, path: Path, record: QuestionRecord) -> None:
        with path.open("ab+") as file:
            _drop_torn_line(file)
            file.write(record.to_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self, methods: Iterable[str] | None = None) -> dict[str, list[QuestionRecord]]:
        """Return the records of each method in the order of the files.

        A last line that a crash cut short is passed over.

        Raises:
            InputError: another line cannot be read; the message names file and line.
        """
        found: dict[str, list[QuestionRecord]] = {name: [] for name in methods or ()}
        for path in self._paths(found or ["*"]):
            for number, line in _whole_lines(path):
                try:
                    record = QuestionRecord.from_json(line)
                except InputError as error:
                    raise InputError(f"{path}:{number}: {error}") from error
                found.setdefault(record.method, []).append(record)
        return found

    def begun(self) -> bool:
        """Return whether there is any record."""
        return any(True for path in self._paths(["*"]) for _ in _whole_lines(path))

    def _paths(self, methods: Iterable[str]) -> list[Path]:
        return sorted(path for name in methods for path in self.folder.glob(f"{name}-r*.jsonl"))

    def done(self, method: str) -> set[tuple[int, str]]:
        """Return which repeats and questions a method has a record of."""
        return {record.key for record in self.read([method])[method]}

    def replace_all(self, records: Iterable[QuestionRecord]) -> None:
        """Write records to new files, each atomically."""
        by_path: dict[Path, list[QuestionRecord]] = {}
        for record in records:
            by_path.setdefault(self.path(record.method, record.repeat), []).append(record)
        for path, group in by_path.items():
            with atomic_write(path, "w") as file:
                file.writelines(record.to_json() + "\n" for record in group)


def _whole_lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        yield number, line.decode("utf-8", errors="replace")


def _drop_torn_line(file: Any) -> None:
    if file.seek(0, os.SEEK_END) == 0:
        return
    file.seek(-1, os.SEEK_END)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
