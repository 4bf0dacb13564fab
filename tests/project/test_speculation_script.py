"""benchmarks/speculation.py: its arithmetic, and a small run of the demo model that goes on."""

import json
import subprocess
import sys

import pytest
from benchmark_script import load
from places import CHECKPOINT, ROOT, SCORER

SCRIPT = ROOT / "benchmarks" / "speculation.py"


def run(engine, repeat, rate, runner=0):
    return {"runner": runner, "engine": engine, "repeat": repeat, "tokens_per_second": rate}


def check(**changed):
    found = {"boundaries": 9, "wrong_positions": 0, "score_error": 0.004, "state_error": 0.01}
    found |= {"num_draft_tokens": 50, "num_accepted_tokens": 20}
    return {"runner": 1, "engine": "check", "repeat": 0, **found, **changed}


def test_scores_are_held_against_the_engine_that_differs_in_them_alone():
    runs = [run("plain", 0, 100.0), run("scores", 0, 90.0), run("drafts", 0, 200.0)]
    runs += [run("scores and drafts", 0, 150.0), run("drafts", 1, 100.0)]
    rows = {row["engine"]: row for row in load("speculation").summary(runs)}
    assert rows["scores"]["loss_percent"] == pytest.approx(10)
    assert rows["scores and drafts"]["loss_percent_of_each"] == pytest.approx([25])
    assert rows["drafts"]["tokens_per_second"] == pytest.approx(150)
    assert "loss_percent" not in rows["drafts"]


@pytest.mark.parametrize(
    ("changed", "right"),
    [({}, True), ({"wrong_positions": 1}, False), ({"score_error": 0.02}, False)],
)
def test_a_missed_boundary_or_a_score_that_is_off_is_wrong(changed, right):
    (row,) = load("speculation").summary([check(**changed)])
    assert (row["runner"], row["right"]) == ("V2", right)


@pytest.mark.engine
@pytest.mark.nightly
def test_the_demo_model_drafts_for_itself_and_what_is_done_is_not_done_again(tmp_path):
    out = tmp_path / "runs.jsonl"
    command = [sys.executable, str(SCRIPT), "--out", str(out), "--model", str(CHECKPOINT)]
    command += ["--draft", str(CHECKPOINT), "--scorer", str(SCORER), "--runners", "0", "--eager"]
    command += ["--count", "4", "--tokens", "96", "--repeats", "1", "--kv-bytes", str(2**26)]

    def measure():
        return subprocess.run(command, capture_output=True, text=True, timeout=500)

    done = measure()
    assert done.returncode == 0, done.stderr[-3000:]
    runs = [json.loads(line) for line in out.read_text().splitlines()]
    engines = ["check", "plain", "scores", "drafts", "scores and drafts"]
    assert [run["engine"] for run in runs] == engines
    assert all(bool(run["num_draft_tokens"]) == ("drafts" in run["engine"]) for run in runs[1:])
    assert all(bool(run["scored_steps"]) == ("scores" in run["engine"]) for run in runs[1:])
    assert runs[0]["num_accepted_tokens"] > 100
    before = out.read_bytes()
    again = measure()
    assert again.returncode == 0, again.stderr[-3000:]
    assert "tokens/s" not in again.stdout, "a run was made again"
    assert out.read_bytes() == before
