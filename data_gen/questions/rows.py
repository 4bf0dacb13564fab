"""Rows of a table of questions: JSON lines, CSV, Parquet, or a data set of the Hugging Face hub.

Everything but the hub is read without `datasets`, and text in a CSV file stays text.
"""

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

from step_infer.errors import InputError
from step_infer.storage.files import sha256_file

_HUB_ID = re.compile(r"(?P<name>[\w-][\w.-]*/[\w.-]+)(:(?P<config>[\w.-]+))?(@(?P<split>[\w.-]+))?")
_FILE_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".txt")
MOST_LINE_MIB = 16
"""Most MiB of a line of questions, and most Mi characters of a text: memory takes many times so
much, and no model's context holds it."""

_COMPRESSED = {
    rb"\x1f\x8b": ("gzip", "gunzip"),
    rb"\x28\xb5\x2f\xfd": ("Zstandard", "unzstd"),
    rb"BZh[1-9]1AY": ("bzip2", "bunzip2"),
    rb"\xfd7zXZ\x00": ("xz", "unxz"),
    rb"PK\x03\x04": ("zip", "unzip"),
}
"""What compressed files begin with, and what undoes each kind."""


@dataclass(frozen=True)
class Row:
    """One row, or what is wrong with it."""

    place: str
    """Where it stands, for messages: file and line, or source and row."""
    name: str
    """An id for a row that has none: "line-N" or "row-N", counted from 1."""
    values: dict[str, Any]
    error: str | None = None
    """Why it has no values; None where it has."""


class RowSource:
    """A source of rows: a file, or a data set of the hub as `org/name[:config][@split]`.

    The kind of a file follows from its ending: .csv, .parquet, and JSON lines for all others.
    """

    def __init__(self, source: str | Path, most_mib: int = MOST_LINE_MIB) -> None:
        """Name a source; nothing is read here.

        Args:
            source: the file, or the data set.
            most_mib: longest line of a file, MiB.

        Raises:
            InputError: there is no such file, and the name is no hub id either.
        """
        self.source = str(source)
        self.most_mib = most_mib
        self.path = Path(source)
        self._hub = None if self.path.exists() else _HUB_ID.fullmatch(self.source)
        if self.path.is_dir():
            raise InputError(
                f"Expected a questions file at {self.source}, found a folder. "
                "Hint: give one of its files."
            )
        missing = not self.path.exists() and self._hub is None
        if missing or (self._hub and self.source.lower().endswith(_FILE_SUFFIXES)):
            raise InputError(
                f"Expected a readable questions file {self.source}, or a hub id such as "
                "org/name:config@split, found no such file. Hint: check the path."
            )

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows in order.

        Raises:
            InputError: the source cannot be read at all.
        """
        try:
            if self._hub is None:
                self._refuse_compressed()
            if self._hub is not None:
                yield from self._numbered(iter(self._dataset))
            elif self.path.suffix.lower() == ".csv":
                yield from self._csv_rows()
            elif self.path.suffix.lower() == ".parquet":
                yield from self._parquet_rows()
            else:
                yield from self._json_rows()
        except OSError as error:
            raise InputError(
                f"Expected a readable questions file {self.source}, found: "
                f"{error.strerror or error}. Hint: check the file and its permissions."
            ) from error

    def sha256(self) -> str:
        """Return a checksum of the content: of a file's bytes, or of all rows of a data set."""
        if self._hub is None:
            return sha256_file(self.path)
        digest = hashlib.sha256()
        for row in self:
            digest.update(json.dumps(row.values, sort_keys=True, default=str).encode() + b"\n")
        return digest.hexdigest()

    def _refuse_compressed(self) -> None:
        with self.path.open("rb") as file:
            begin = file.read(8)
        for pattern, (kind, tool) in _COMPRESSED.items():
            if re.match(pattern, begin, re.DOTALL):
                raise InputError(
                    f"Expected a file that is not compressed at {self.path}, found {kind}. "
                    f"Hint: undo it with {tool}, and give the file that comes out."
                )

    def _json_rows(self) -> Iterator[Row]:
        most = self.most_mib * 2**20
        with self.path.open("rb") as file:
            # Not by text lines: JSON texts may hold other separators, such as U+2028, as they are.
            for number, line in enumerate(iter(lambda: file.readline(most + 1), b""), start=1):
                place = f"{self.path}:{number}"
                if len(line) > most:
                    while line and not line.endswith(b"\n"):
                        line = file.readline(2**20)
                    message = f"Expected at most {self.most_mib} MiB in a line, found more."
                    yield Row(place, "", {}, message)
                    continue
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    yield Row(place, "", {}, f"Expected UTF-8 text, found: {error}.")
                    continue
                if text.strip():
                    yield _json_row(text, place, f"line-{number}")

    def _csv_rows(self) -> Iterator[Row]:
        most = self.most_mib * 2**20
        csv.field_size_limit(most)  # the library's own limit is 131,072 characters
        with self.path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(self._bounded(file, most), strict=True)
            try:
                columns = next(reader, [])
                twice = sorted({name for name in columns if name and columns.count(name) > 1})
                if twice:
                    raise InputError(
                        f"Expected each column once in the first line of {self.path}, found "
                        f"{', '.join(map(repr, twice))} more than once. Hint: rename the others."
                    )
                for number, values in enumerate((row for row in reader if row), start=1):
                    yield self._csv_row(columns, values, number)
            except (csv.Error, UnicodeDecodeError) as error:
                raise InputError(
                    f"Expected CSV in UTF-8 in {self.path}, found: {error} "
                    f"(line {reader.line_num + 1}). "
                    "Hint: save it as UTF-8 and close every quotation mark."
                ) from error

    def _bounded(self, file: TextIO, most: int) -> Iterator[str]:
        while line := file.readline(most + 1):
            if len(line) > most:
                raise InputError(
                    f"Expected at most {self.most_mib} MiB in a line of {self.path}, found more."
                )
            yield line

    def _csv_row(self, columns: Sequence[str], values: Sequence[str], number: int) -> Row:
        place, name = f"{self.path}, row {number}", f"row-{number}"
        if len(values) != len(columns):
            message = f"Expected {len(columns)} columns (first line), found {len(values)}."
            return Row(place, name, {}, message)
        return Row(place, name, dict(zip(columns, values, strict=True)))

    def _parquet_rows(self) -> Iterator[Row]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self.path) as file:
                batches = (batch.to_pylist() for batch in file.iter_batches(1024))
                yield from self._numbered(row for batch in batches for row in batch)
        except pa.ArrowException as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"Expected Parquet in {self.path}, found: {reason.rstrip('.')}. "
                "Hint: the file may be cut short; copy or make it again."
            ) from error

    @cached_property
    def _dataset(self) -> Any:
        from datasets import Dataset, load_dataset

        assert self._hub is not None
        name, split = self._hub["name"], self._hub["split"]
        try:
            found = load_dataset(name, self._hub["config"], split=split)
        except Exception as error:  # many types, of the hub's client too; all mean "not to be had"
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"Expected a file or a data set of the hub at {self.source}, found: {reason} Hint: "
                "check the name and the configuration, log in with `hf auth login` if it is gated, "
                "or give a file."
            ) from error
        if isinstance(found, Dataset):
            return found
        splits = list(found)
        if len(splits) > 1 and "test" not in splits:
            raise InputError(
                f"Expected one split of {self.source}, found {', '.join(splits)}. "
                f"Hint: say {name}@{splits[0]}, for example."
            )
        return found["test" if len(splits) > 1 else splits[0]]

    def _numbered(self, rows: Iterator[dict[str, Any]]) -> Iterator[Row]:
        for number, values in enumerate(rows, start=1):
            yield Row(f"{self.source}, row {number}", f"row-{number}", values)


def _json_row(text: str, place: str, name: str) -> Row:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        message = f"Expected one JSON object a line, found: {error}."
        if error.msg == "Extra data" and text[error.pos :].lstrip().startswith("{"):
            message = (
                f"Expected one JSON object a line, found another from column {error.pos + 1} on."
            )
        return Row(place, name, {}, message)
    except ValueError as error:  # a whole number of thousands of digits
        return Row(place, name, {}, f"Expected one JSON object a line, found: {error}.")
    except RecursionError:
        return Row(place, name, {}, "Expected one JSON object a line, found one nested too deep.")
    if not isinstance(values, dict):
        return Row(place, name, {}, f"Expected a JSON object, found {short(values)}.")
    return Row(place, name, values)


def short(value: Any) -> str:
    """Return a value as JSON of at most 40 characters, for messages."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else text[:39] + "…"
