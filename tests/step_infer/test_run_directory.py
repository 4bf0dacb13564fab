"""The directory of a run: claimed by one process, gone on with by the same settings."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

from step_infer.errors import InputError
from step_infer.storage.run_directory import (
    RunDirectory,
    first_difference,
    read_manifest,
    run_manifest,
    write_manifest,
)

KIND = "test"
SETTINGS = {"seed": 0, "sizes": [1, 2], "name": None}


def claimed(path: Path) -> RunDirectory:
    return RunDirectory(path, KIND).claim()


def python(code: str, path: Path) -> "subprocess.Popen[str]":
    """Start a process that runs code on a directory, and prints what it has to say."""
    code = "import sys\nfrom step_infer.storage.run_directory import RunDirectory\n" + code
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, text=True, stdout=subprocess.PIPE
    )


def test_a_new_directory_is_made_and_begun(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run"
    run = RunDirectory(path, KIND)
    assert run.manifest == {}
    assert not run.complete
    assert not path.exists()
    with run.claim():
        run.begin(SETTINGS, model="m")
    manifest = read_manifest(path)
    assert manifest == run.manifest
    assert list(manifest)[-4:] == ["kind", "settings", "complete", "model"]
    assert manifest["kind"] == KIND
    assert manifest["settings"] == SETTINGS
    assert manifest["complete"] is False


def test_a_directory_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".hidden").touch()
    (tmp_path / "notes.txt").touch()
    with claimed(tmp_path) as run:
        with pytest.raises(InputError, match=r"found notes\.txt and no manifest\.json\. Hint"):
            run.begin(SETTINGS)
        assert run.manifest == {}
        (tmp_path / "notes.txt").unlink()
        run.begin(SETTINGS)


@pytest.mark.parametrize("kind", ["scorer training", None])
def test_a_directory_of_another_command_is_left_alone(tmp_path: Path, kind: str | None) -> None:
    named = {} if kind is None else {"kind": kind}
    write_manifest(tmp_path, run_manifest(**named))
    before = (tmp_path / "manifest.json").read_bytes()
    with pytest.raises(InputError, match=f"found another command's, of kind {kind!r}. Hint"):
        claimed(tmp_path)
    assert (tmp_path / "manifest.json").read_bytes() == before
    RunDirectory(tmp_path, kind).claim().close()  # its own command may: the lock is free again


def test_a_path_that_cannot_be_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match=f"Expected a writable output directory at {path}"):
            claimed(path)


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    with claimed(tmp_path) as run:
        run.begin(SETTINGS)
        run.require_settings(SETTINGS | {"sizes": (1, 2)})  # the same in JSON
        run.require_settings({name: SETTINGS[name] for name in ("seed", "sizes")})
        for name, value in (("seed", 1), ("sizes", [1]), ("name", "x" * 200), ("new", True)):
            message = rf"Expected {name} {run.manifest['settings'].get(name)!r} \(the run started"
            with pytest.raises(InputError, match=message.replace("[", r"\[")) as refused:
                run.require_settings(SETTINGS | {name: value})
            assert len(str(refused.value)) < 300 + len(str(tmp_path))
        with pytest.raises(InputError, match="Expected seed 0 .* found None"):
            run.require_settings({"sizes": [1, 2]})


def test_the_first_difference_follows_the_order_of_the_new_settings() -> None:
    assert first_difference({"a": 1, "b": 2}, {"b": 3, "a": 0}) == "b"
    assert first_difference({"a": 1, "b": 2}, {"b": 2}) == "a"
    assert first_difference({"a": 1, "b": None}, {"c": None, "a": 1}) is None


REFUSED = """
from step_infer.cli.command import run
sys.stderr = sys.stdout
run(RunDirectory(sys.argv[1], "test").claim)
"""


def test_a_second_process_is_refused_in_one_line_until_the_first_is_done(tmp_path: Path) -> None:
    with claimed(tmp_path):
        process = python(REFUSED, tmp_path)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 2
        assert output.count("\n") == 1
        assert output.startswith(f"error: Expected no other process writing to {tmp_path}, found")
        with pytest.raises(InputError, match="Expected no other process"):
            claimed(tmp_path)  # nor a second one in this process
    claimed(tmp_path).close()


def test_anyone_may_read_what_another_process_writes(tmp_path: Path) -> None:
    with claimed(tmp_path) as run:
        run.begin(SETTINGS)
        reader = RunDirectory(tmp_path, KIND)
        run.update(rows=3)
        assert reader.manifest["rows"] == 3
        reader.close()  # holds nothing
        with pytest.raises(InputError, match="Expected no other process"):
            claimed(tmp_path)


HOLDS_WITH_A_CHILD = """
import multiprocessing, os, time
held = RunDirectory(sys.argv[1], "test").claim()
def live_on():  # said by the child: before it runs, it has not let the lock go
    print(os.getpid(), flush=True)
    time.sleep(60)
multiprocessing.get_context("fork").Process(target=live_on).start()
time.sleep(60)
"""


def test_a_killed_run_is_free_even_where_a_child_of_it_lives_on(tmp_path: Path) -> None:
    process = python(HOLDS_WITH_A_CHILD, tmp_path)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    with pytest.raises(InputError, match="Expected no other process"):
        claimed(tmp_path)
    process.kill()
    process.wait()
    assert Path(f"/proc/{child}").exists()
    try:
        claimed(tmp_path).close()
    finally:
        subprocess.run(["kill", "-9", str(child)], check=True)
        process.stdout.close()


KILLED_IN_A_WRITE = """
import os, signal
from pathlib import Path
run = RunDirectory(sys.argv[1], "test").claim()
run.begin({"seed": 0})
run.update(rows=1)
Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
run.update(rows=2)
"""


def test_a_run_that_was_killed_in_a_write_goes_on_from_the_write_before(tmp_path: Path) -> None:
    process = python(KILLED_IN_A_WRITE, tmp_path)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert list(tmp_path.glob(".manifest.json.*.tmp"))
    with claimed(tmp_path) as run:
        run.require_settings({"seed": 0})
        assert run.manifest["rows"] == 1
        assert not run.complete
        run.finish(rows=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "manifest.json"]
    assert run.complete


def test_finishing_twice_changes_nothing(tmp_path: Path) -> None:
    with claimed(tmp_path) as run:
        run.begin(SETTINGS, seconds=0.0)
        run.finish(seconds=2.0)
        first = (tmp_path / "manifest.json").read_bytes()
        run.finish(seconds=2.0)
        run.finish()
    run.close()
    assert (tmp_path / "manifest.json").read_bytes() == first
    assert run.complete
    assert run.manifest["seconds"] == 2.0
