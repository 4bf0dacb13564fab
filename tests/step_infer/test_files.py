"""Atomic writes, checksums, JSON files."""

import hashlib
import os
from pathlib import Path

import pytest

from step_infer.errors import InputError
from step_infer.storage.files import (
    atomic_path,
    atomic_write,
    check_output,
    read_json,
    sha256_file,
    write_json,
)
from step_infer.storage.run_directory import read_manifest, run_manifest, write_manifest


def test_a_file_appears_whole_and_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    with atomic_write(path, "w") as file:
        file.write("déjà vu")
        assert not path.exists()
    assert path.read_text(encoding="utf-8") == "déjà vu"
    assert os.listdir(path.parent) == ["file.txt"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(TypeError), atomic_write(path) as file:
        file.write(b"new" + "not bytes")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_the_file_has_ordinary_permissions(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        with atomic_path(tmp_path / "file") as temporary:
            temporary.write_bytes(b"x")
    finally:
        os.umask(umask)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_a_folder_that_cannot_be_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match="Expected a writable folder"),
        atomic_write(tmp_path / "file" / "below"),
    ):
        pass


def test_a_folder_under_the_name_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found the folder"), atomic_write(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_a_clear_error_and_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", [1])
    with (
        pytest.raises(InputError, match=r"Expected room on the disk for .*a\.json"),
        atomic_write(tmp_path / "a.json"),
    ):
        os.write(os.open("/dev/full", os.O_WRONLY), b"2")
    assert read_json(tmp_path / "a.json") == [1]
    assert os.listdir(tmp_path) == ["a.json"]


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_file(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()


def test_an_output_that_would_take_an_inputs_place_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "traces").mkdir(parents=True)
    for name in ("log.jsonl", "run/manifest.json", "run/traces/part-0.parquet", "run/mine.json"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "link").symlink_to("log.jsonl")
    (tmp_path / "other").symlink_to("run")
    refused = (
        "log.jsonl",
        "run/../log.jsonl",
        "link",
        "other/manifest.json",
        "run/traces/new.json",
    )
    inputs = (
        None,
        tmp_path / "log.jsonl",
        run / "manifest.json",
        run / "traces",
        tmp_path / "none",
    )
    for name in refused:
        with pytest.raises(InputError, match=r"found .*input .*Hint: choose another --out"):
            check_output(tmp_path / name, *inputs)
    for name in ("log.html", "run/mine.json", "run/new.json", "none"):
        check_output(tmp_path / name, *inputs)
    with pytest.raises(InputError, match="found the folder"):
        check_output(run)


def test_json_round_trip_and_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": [1, None, "ü"]})
    assert read_json(path) == {"a": [1, None, "ü"]}
    path.write_text("{")
    with pytest.raises(InputError, match=r"Expected JSON in .*a\.json"):
        read_json(path)
    with pytest.raises(InputError, match="Expected a readable file"):
        read_json(tmp_path / "none.json")


def test_a_manifest_states_versions_and_schema(tmp_path: Path) -> None:
    write_manifest(tmp_path, run_manifest(kind="test"))
    manifest = read_manifest(tmp_path)
    assert manifest["kind"] == "test"
    assert {"python", "torch"} <= manifest["versions"].keys()


def test_a_directory_without_a_manifest_is_told_from_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"found no manifest\.json in it\. Hint"):
        read_manifest(tmp_path)
    with pytest.raises(InputError, match="found no such directory"):
        read_manifest(tmp_path / "none")


def test_a_manifest_of_another_schema_is_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path, {"schema_version": 99})
    with pytest.raises(InputError, match="Expected schema_version 1 .* found 99"):
        read_manifest(tmp_path)


def test_json_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for text, reason in (("{", "Expecting"), ("[" * 99999, "recursion")):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(InputError, match=f"Expected JSON in .*a.json, found: .*{reason}"):
            read_json(tmp_path / "a.json")
