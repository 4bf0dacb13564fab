"""Commands run in this process: arguments in, exit status and output out, as from a shell.

A process of its own costs seconds of imports. Tests of what only a process can show (it is killed,
it warns, it starts others) start one.
"""

import contextlib
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from vllm_log import untouched_vllm_log


@dataclass(frozen=True)
class Finished:
    """What a command that has ended left, by the names of `subprocess.CompletedProcess`."""

    returncode: int
    stdout: str
    stderr: str


def run_command(main: Callable[[], None], *arguments: object) -> Finished:
    """Call a console script's `main` with arguments; a defect's exception goes on to the test."""
    stdout, stderr = io.StringIO(), io.StringIO()
    returncode = 0
    with (
        untouched_vllm_log(),
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        patch.setattr(sys, "argv", [main.__module__, *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            returncode = int(end.code or 0)
    return Finished(returncode, stdout.getvalue(), stderr.getvalue())
