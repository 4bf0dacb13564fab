"""benchmarks/adapter_cost.py: its arithmetic, and a run in a tiny shape that goes on."""

import json
import subprocess
import sys

import pytest
from benchmark_script import load
from places import ROOT

from step_eval.replay.shapes import read_shape
from step_infer.errors import InputError

SCRIPT = ROOT / "benchmarks" / "adapter_cost.py"


def test_a_file_that_holds_no_runs_is_refused(tmp_path):
    (tmp_path / "runs.jsonl").write_text("nonsense")
    with pytest.raises(InputError, match="--out to hold a run a line, as JSON, found: Expecting v"):
        load("adapter_cost").read_runs(tmp_path / "runs.jsonl")


def run(engine, repeat, rate, runner=0):
    return {
        "runner": runner,
        "sequences": 64,
        "engine": engine,
        "repeat": repeat,
        "tokens_per_second": rate,
    }


def test_the_loss_compares_the_runs_of_one_repeat():
    runs = [run("plain", 0, 100.0), run("scoring", 0, 99.0), run("plain", 1, 200.0)]
    runs += [run("scoring", 1, 190.0), run("plain", 2, 100.0), run("plain", 0, 5.0, runner=1)]
    runs += [run("plain", 0, 7.0) | {"ranks": 2}]
    (row,) = load("adapter_cost").summary(runs)
    assert (row["runner"], row["ranks"], row["sequences"]) == ("V1", 1, 64)
    assert row["loss_percent_of_each_repeat"] == pytest.approx([1.0, 5.0])
    assert row["loss_percent"] == pytest.approx(3.0)
    assert "loss_percent_over_idle" not in row
    runs += [run("idle", 0, 99.0), run("idle", 1, 200.0)]
    (row, idle) = load("adapter_cost").summary(runs)
    assert row["loss_percent_over_idle_of_each_repeat"] == pytest.approx([0.0, 5.0])
    assert idle["engine"] == "idle"
    assert "loss_percent_over_idle" not in idle


def test_the_gpu_is_busy_while_any_kernel_runs():
    covered = load("engine_profile").covered
    assert covered([]) == (0, 0)
    # Two streams: the second kernel within the first, the third half, a gap before the fourth.
    assert covered([(10, 20), (12, 14), (15, 25), (30, 31)]) == (16, 21)


@pytest.mark.engine
@pytest.mark.nightly
def test_a_tiny_shape_runs_and_what_is_done_is_not_done_again(tmp_path):
    shape = read_shape("qwen3-8b")
    shape |= {"hidden_size": 64, "head_dim": 32, "intermediate_size": 128, "vocab_size": 128}
    shape |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    (tmp_path / "tiny.json").write_text(json.dumps(shape))
    out = tmp_path / "cost.jsonl"
    command = [sys.executable, str(SCRIPT), "--out", str(out), "--shape"]
    command += [str(tmp_path / "tiny.json"), "--runners", "0", "--sequences", "4"]
    command += ["--tokens", "64", "--repeats", "2", "--profile"]
    engines = ["plain", "scoring", "eager", "scheduler", "idle"]
    command += ["--engines", *engines]

    def measure():
        return subprocess.run(command, capture_output=True, text=True, timeout=400)

    done = measure()
    assert done.returncode == 0, done.stderr[-3000:]
    runs = [json.loads(line) for line in out.read_text().splitlines()]
    assert [run["engine"] for run in runs] == engines * 2
    # A step without a score is a step all the same; a request that did not opt in has none.
    opted = {run["engine"] for run in runs if run["scored_steps"] > 0}
    assert opted == {"scoring", "eager", "scheduler"}
    profile = json.loads((tmp_path / "cost.profile.json").read_text())
    assert list(profile) == [f"V1 {engine}" for engine in engines]
    ranks = {engine: profile[f"V1 {engine}"] for engine in engines}
    assert all(len(found) == 1 and len(found[0]["kernels"]) > 20 for found in ranks.values())
    scored = [engine for engine in engines if "aten::sigmoid" in ranks[engine][0]["kernels"]]
    assert scored == ["scoring", "eager"], "without a request that opted in nothing is scored"
    assert all(run["device"] and run["versions"]["torch"] for run in runs)
    assert all(0 < run["median_step_ms"] < 1e3 * run["seconds"] for run in runs)
    before = out.read_bytes()
    again = measure()
    assert again.returncode == 0, again.stderr[-3000:]
    assert "tokens/s" not in again.stdout, "a run was made again"
    assert out.read_bytes() == before
