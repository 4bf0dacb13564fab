"""The manifest of a traces directory, without what its tables and states need to be read."""

from pathlib import Path
from typing import Any

from step_infer.errors import InputError
from step_infer.storage.files import real_path
from step_infer.storage.run_directory import MANIFEST_NAME, read_manifest

KIND = "traces"
"""What the manifest calls such a directory."""

OWN_FILES = (MANIFEST_NAME, "traces", "features")
"""What it holds; other files are its user's."""


def read_trace_manifest(path: Path | str) -> dict[str, Any]:
    """Read a traces directory's manifest.

    Raises:
        InputError: there is none, or not that of a traces directory; a part is not listed as
            `TraceWriter` does it, or lies outside the directory.
    """
    manifest = read_manifest(path)
    if manifest.get("kind") != KIND or not isinstance(manifest.get("parts"), list):
        raise InputError(
            f"Expected a traces directory at {path}, found a manifest of kind "
            f"{manifest.get('kind')!r}. Hint: make one with step-collect."
        )
    for index, part in enumerate(manifest["parts"]):
        _check_part(Path(path), index, part)
    return manifest


def _check_part(directory: Path, index: int, part: Any) -> None:
    files = [part.get("traces"), part.get("features")] if isinstance(part, dict) else [None]
    if not (_is_listed(files[0]) and (files[1] is None or _is_listed(files[1]))):
        raise InputError(
            f"Expected file, rows, bytes and sha256 of traces, and of features or null, in part "
            f"{index} of {directory / MANIFEST_NAME}, found {part!r:.60}. Hint: restore the "
            "manifest, or make the directory again."
        )
    inside = real_path(directory)
    for listed in filter(None, files):
        if not real_path(directory / listed["file"]).is_relative_to(inside):
            raise InputError(
                f"Expected part {index} of {directory / MANIFEST_NAME} inside its directory, "
                f"found {listed['file']!r:.60}, which leads out of it. Hint: copy the file into "
                "the directory; links to other places are not followed."
            )


def _is_listed(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(isinstance(value.get(name), str) for name in ("file", "sha256"))
        and all(type(value.get(name)) is int and value[name] >= 0 for name in ("rows", "bytes"))
        and "\0" not in value["file"]
    )
