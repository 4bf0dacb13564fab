"""A Python for scripts that run step-eval: with the pretended engine in StepLLM's place."""

import sys
from pathlib import Path

from places import ROOT

# Runs a module, or a script as it is.
_PYTHON = """#!{python}
import os, runpy, sys
sys.path[:0] = [{root!r}, {tests!r}]
if sys.argv[1] != "-m":
    sys.argv = sys.argv[1:]
    sys.path.insert(0, os.path.dirname(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.exit()
if sys.argv[2] == "step_eval.command":
    import fake_engine, step_infer.client.llm
    step_infer.client.llm.StepLLM = fake_engine.FakeEngine
sys.argv = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def pretended_python(folder: Path) -> Path:
    """Write the interpreter into a folder, and return its path."""
    path = folder / "python"
    path.write_text(
        _PYTHON.format(python=sys.executable, root=str(ROOT), tests=str(ROOT / "tests" / "harness"))
    )
    path.chmod(0o755)
    return path
