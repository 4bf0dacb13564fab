"""A cache of the model hub with two revisions of one model, for a process without network."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from places import ROOT

HEADS = {"main": "new", "v1": "old"}
"""What the chat template of each revision begins with."""


def run_beside_two_revisions(folder: Path, model: Path | str, *arguments: object) -> str:
    """Run Python with arguments and return what it prints; it must succeed.

    Args:
        folder: where the cache is made, and where the process runs.
        model: folder of which the hub's org/name has two revisions.
        arguments: of Python.
    """
    hub = folder / "hub" / "models--org--name"
    for number, (name, head) in enumerate(HEADS.items()):
        snapshot = hub / "snapshots" / (f"{number}" * 40)
        if not snapshot.exists():
            shutil.copytree(model, snapshot)
            template = snapshot / "chat_template.jinja"
            template.write_text(head + template.read_text())
        (hub / "refs").mkdir(exist_ok=True)
        (hub / "refs" / name).write_text(snapshot.name)
    here = {"HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=os.environ | here,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
