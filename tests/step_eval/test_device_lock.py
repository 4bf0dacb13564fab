"""Taking turns on a device: starts go together, a measurement is alone."""

import subprocess
import sys
import threading

import pytest

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


def entered(path, alone, seconds):
    """Say whether the lock can be had within some seconds; leaves a waiting thread where not."""
    inside = threading.Event()

    def wait():
        with device_lock(path, alone):
            inside.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return inside.wait(seconds), thread


def test_two_engines_start_together_and_a_measurement_waits_for_both(tmp_path):
    lock = str(tmp_path / "lock")
    starting = holder(lock, "together")
    assert entered(lock, False, 10)[0]
    alone, thread = entered(lock, True, 0.3)
    assert not alone
    starting.communicate()
    thread.join(10)
    assert not thread.is_alive(), "the measurement never had its turn"


def test_nobody_enters_beside_a_measurement_and_a_killed_one_frees_the_lock(tmp_path):
    lock = str(tmp_path / "lock")
    measuring = holder(lock, "alone")
    for alone in (False, True):
        found, thread = entered(lock, alone, 0.2)
        assert not found
    measuring.kill()
    measuring.communicate()
    thread.join(10)
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
