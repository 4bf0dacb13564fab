"""Processes that begin with the training code loaded, which takes a fresh interpreter seconds.

multiprocessing's fork server forks each from a process that has done nothing but import it.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
from multiprocessing.process import BaseProcess
from pathlib import Path

from places import ROOT

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "data_gen.merge",
        "step_train.demo_model.run",
        "step_train.export.run",
        "step_train.extract.run",
        "step_train.fit.run",
    ]
)

# Dies at the Nth rename of a file to its final name, before or after it, as `kill -9` would.
_DIE = """
import os, signal, sys
from pathlib import Path
replace, left, name, when = Path.replace, [int(sys.argv[1])], sys.argv[2], sys.argv[3]
def deadly(self, target):
    hit = Path(target).match(name)
    left[0] -= hit
    if hit and not left[0] and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    done = replace(self, target)
    if hit and not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return done
Path.replace = deadly
"""


def start(code: str, *arguments: object, log: str | Path) -> BaseProcess:
    """Start a process that runs code as `python -c CODE ARGUMENTS >log 2>&1` does."""
    process = _CONTEXT.Process(target=_run, args=(code, list(map(str, arguments)), str(log)))
    process.start()
    return process


def _run(code: str, arguments: list[str], log: str) -> None:
    # What a fresh interpreter starts processes with; ours would be this very server.
    multiprocessing.set_start_method(None, force=True)
    # A process that a shell has put into the background ignores interrupts, and so do its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.chdir(ROOT)
    sys.argv = ["-c", *arguments]
    exec(code, {"__name__": "__main__"})


def killed(code: str, count: int, name: str, when: str, *arguments: object) -> None:
    """Run code that dies of SIGKILL as it renames a file for the `count`-th time.

    Args:
        code: what to run; `arguments` begin at sys.argv[4], and `Path` and `sys` are imported.
        count: which rename, from 1, of those that `name` matches.
        name: pattern of the final name.
        when: "before" or "after" the rename.
        arguments: of the code.
    """
    with tempfile.NamedTemporaryFile("r") as log:
        process = start(_DIE + code, count, name, when, *arguments, log=log.name)
        process.join(300)
        assert process.exitcode == -signal.SIGKILL, log.read()
