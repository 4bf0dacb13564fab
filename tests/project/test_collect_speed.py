"""benchmarks/collect_speed.py: its arithmetic, what it says of processes, and a run."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from benchmark_script import load
from places import CHECKPOINT, ROOT

from step_infer.errors import InputError

SCRIPT = ROOT / "benchmarks" / "collect_speed.py"


def run(variant: str, repeat: int, rate: float) -> dict[str, object]:
    figures = dict.fromkeys(load("collect_speed").FIGURES, 1.0)
    return {**figures, "variant": variant, "repeat": repeat, "tokens_per_second": rate}


def test_a_ratio_is_over_the_plain_run_of_the_same_repeat() -> None:
    runs = [run("plain", 0, 100.0), run("states", 0, 90.0), run("plain", 1, 50.0)]
    runs += [run("states", 1, 50.0), run("confidence", 2, 7.0)]
    found = load("collect_speed").summary(runs)
    assert found["plain"]["tokens_per_second"] == 75.0
    assert found["states"]["ratio_of_each_repeat"] == [0.9, 1.0]
    assert found["states"]["ratio"] == pytest.approx(0.95)
    assert "ratio" not in found["plain"]
    assert "ratio" not in found["confidence"], "no plain run to compare it with"


def test_a_file_that_holds_no_runs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").write_text("nonsense")
    with pytest.raises(InputError, match="Expected --out to hold a run a line, as JSON, found"):
        load("collect_speed").read_runs(tmp_path / "runs.jsonl")


def busy_until(end_s: float) -> None:
    while time.process_time() < end_s:
        sum(range(1000))


def test_samples_of_stacks_name_what_was_busy() -> None:
    samples = load("stack_samples")
    samples.start()
    busy_until(time.process_time() + 0.3)
    found = samples.stop()["main"]
    assert found["samples"] > 5
    assert sum(found["own"].values()) == pytest.approx(1, abs=0.05)
    (share,) = [n for place, n in found["within"].items() if place.endswith(" busy_until")]
    assert share > 0.5
    assert samples.stop()["main"] == found, "nothing is sampled after the end"


@pytest.mark.engine
@pytest.mark.nightly
def test_all_variants_run_and_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"question": "S 776+911", "answer": "687"}\n')
    out = tmp_path / "speed.jsonl"
    command = [sys.executable, str(SCRIPT), "--out", str(out), "--model", str(CHECKPOINT)]
    command += ["--questions", str(questions), "--num-questions", "1", "--num-traces", "8"]
    command += ["--max-tokens", "48", "--max-num-seqs", "8", "--repeats", "1", "--profile"]
    variants = ["plain", "traces", "states", "confidence"]
    command += ["--variants", *variants]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr[-3000:]
        runs = [json.loads(line) for line in out.read_text().splitlines()]
        assert [found["variant"] for found in runs] == variants
    assert {found["traces"] for found in runs} == {8}
    assert len({found["tokens"] for found in runs}) == 1, "the same seeds, the same traces"
    assert all(found["steps"] >= 48 and found["device"] for found in runs)
    profile = json.loads((tmp_path / "speed.profile.json").read_text())
    assert list(profile) == [f"{variant} 0" for variant in variants]
