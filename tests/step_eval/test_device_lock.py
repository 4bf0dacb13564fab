"""Taking turns on a device: starts go together, a measurement is alone."""

import fcntl
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from step_eval import device_lock as module
from step_eval.device_lock import device_lock
from step_infer.errors import InputError

HOLD = """
import sys
from step_eval.device_lock import device_lock
with device_lock(sys.argv[1], alone=sys.argv[2] == "alone"):
    print("held", flush=True)
    sys.stdin.readline()
"""


def holder(path, how):
    """Start a process that holds the lock until its input ends, and wait until it does."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, path, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    return process


def is_free(path, alone):
    """Say whether the lock can be had at once: a request that would wait is refused instead."""

    def flock(file, how):
        fcntl.flock(file, how | fcntl.LOCK_NB)

    with pytest.MonkeyPatch.context() as patch:
        names = {**vars(fcntl), "flock": flock}
        patch.setattr(module, "fcntl", SimpleNamespace(**names))
        try:
            with device_lock(path, alone):
                return True
        except BlockingIOError:
            return False


def waiting(path, alone):
    """Start a thread that ends once it has had the lock."""

    def wait():
        with device_lock(path, alone):
            pass

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_two_engines_start_together_and_a_measurement_waits_for_both(tmp_path):
    lock = str(tmp_path / "lock")
    starting = holder(lock, "together")
    assert is_free(lock, alone=False)
    assert not is_free(lock, alone=True)
    thread = waiting(lock, alone=True)
    starting.communicate()
    thread.join(120)
    assert not thread.is_alive(), "the measurement never had its turn"


def test_nobody_enters_beside_a_measurement_and_a_killed_one_frees_the_lock(tmp_path):
    lock = str(tmp_path / "lock")
    measuring = holder(lock, "alone")
    assert not is_free(lock, alone=False)
    assert not is_free(lock, alone=True)
    threads = [waiting(lock, alone) for alone in (False, True)]
    measuring.kill()
    measuring.communicate()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()


def test_without_a_file_nobody_waits():
    with device_lock(None, alone=True), device_lock(None, alone=True):
        pass


def test_a_lock_file_that_cannot_be_written_is_named(tmp_path):
    with (
        pytest.raises(InputError, match=r"writable lock file at .*none/lock"),
        device_lock(tmp_path / "none" / "lock", True),
    ):
        pass
