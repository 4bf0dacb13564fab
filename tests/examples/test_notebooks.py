"""The notebooks run from their first cell to their last."""

import json
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from places import ROOT

pytestmark = pytest.mark.nightly
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib.use("Agg")
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("STEP_NOTEBOOK_RUNS", str(tmp_path))
    names: dict[str, Any] = {"__name__": "__main__"}
    cells = json.loads(path.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 4
    for number, cell in enumerate(code, start=1):
        assert cell["outputs"] == [], "a notebook is kept without outputs"
        exec(compile("".join(cell["source"]), f"{path.name} cell {number}", "exec"), names)
    assert names["plt"].get_fignums() != []
    names["plt"].close("all")


def test_there_are_two() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["judge_a_scorer", "look_at_traces"]
