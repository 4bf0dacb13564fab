"""Atomic writes, checksums, small JSON files, and the types of what is read from them."""

import dataclasses
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import IO, Any, get_args, get_origin, get_type_hints

from step_infer.errors import InputError


def real_path(path: Path | str) -> Path:
    """Return the absolute path without links; one in a loop of links stays as it is.

    Path.resolve raises on a loop, before Python 3.13 a RuntimeError.
    """
    return Path(os.path.realpath(path))


def check_output(path: Path | str, *inputs: Path | str | None) -> None:
    """Refuse an output file that cannot be, or that would take the place of what is read.

    For a command to call before its work, so that nothing is lost when it would write.

    Args:
        path: the file that will be written.
        inputs: files that are read, and folders of which everything is. Of a run directory, name
            what the commands put there: its user may keep other files in it. Those that are None or
            not there do not count.

    Raises:
        InputError: `path` is a folder, an input, or in an input folder.
    """
    target = real_path(path)
    if target.is_dir():
        raise InputError(f"Expected a file to write, found the folder {path}. Hint: name a file.")
    for given in inputs:
        if given is None or not Path(given).exists():
            continue
        source = real_path(given)
        if target.is_relative_to(source):
            raise InputError(
                f"Expected an output file apart from what is read, found {path}, which is "
                f"{'' if target == source else 'part of '}the input {given}. "
                "Hint: choose another --out."
            )


@contextmanager
def full_disk_named(path: Path | str) -> Iterator[None]:
    """Turn the error of a write for which the disk has no room into one that says so.

    Raises:
        InputError: no room for `path`; other errors stay as they are.
    """
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        # safetensors has an error type of its own, without the number.
        if number not in (errno.ENOSPC, errno.EDQUOT) and "os error 28" not in str(error):
            raise
        raise InputError(
            f"Expected room on the disk for {path}, found it full. Hint: make room and give the "
            "same command again; what was written before is kept."
        ) from error


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it when the block succeeds.

    For writers that want a file name. The file is synced to disk before the rename, and its folder
    after it; if the block raises, the temporary file is removed and `path` stays as it was.

    Raises:
        InputError: the folder cannot be made or written, `path` is a folder, or the disk is full.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"Expected a file to write, found the folder {path}. Hint: name a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise InputError(
            f"Expected a writable folder for {path}, found: {error.strerror}. "
            "Hint: choose another output path or change its permissions."
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        with full_disk_named(path):
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: Path | str, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file that appears under `path` only when the block succeeds; see `atomic_path`."""
    encoding = None if "b" in mode else "utf-8"
    with atomic_path(path) as temporary, temporary.open(mode, encoding=encoding) as file:
        yield file


def sha256_file(path: Path | str) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_write(path, "w") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"Expected a readable file {path}, found: {error.strerror}. "
            "Hint: check the path and its permissions."
        ) from error
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or thousands of digits
        raise InputError(
            f"Expected JSON in {path}, found: {error}. "
            "Hint: the file may be cut short; copy or make it again."
        ) from error


def check_types(value: Any) -> None:
    """Check that a dataclass's fields hold what their annotations say, one level deep.

    A truth value is no number.

    Raises:
        TypeError: one does not; the message names it.
    """
    types = get_type_hints(type(value))
    for field in dataclasses.fields(value):
        found, annotation = getattr(value, field.name), types[field.name]
        options = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
        allowed = tuple(get_origin(option) or option for option in options)
        if not isinstance(found, allowed) or (isinstance(found, bool) and bool not in allowed):
            names = " or ".join("null" if a is type(None) else a.__name__ for a in allowed)
            raise TypeError(f"{field.name} {found!r}, which is no {names}")
