"""The manifest of a traces directory, without what its tables and states need to be read."""

from pathlib import Path
from typing import Any

from step_infer.errors import InputError
from step_infer.storage.run_directory import MANIFEST_NAME, read_manifest

KIND = "traces"
"""What the manifest calls such a directory."""

OWN_FILES = (MANIFEST_NAME, "traces", "features")
"""What it holds; other files are its user's."""


def read_trace_manifest(path: Path | str) -> dict[str, Any]:
    """Read a traces directory's manifest.

    Raises:
        InputError: there is none, or not that of a traces directory.
    """
    manifest = read_manifest(path)
    if manifest.get("kind") != KIND or not isinstance(manifest.get("parts"), list):
        raise InputError(
            f"Expected a traces directory at {path}, found a manifest of kind "
            f"{manifest.get('kind')!r}. Hint: make one with step-collect."
        )
    return manifest
