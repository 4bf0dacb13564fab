"""benchmarks/driver_writing.py: what it writes is whole, and its figures are of what it wrote."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmark_script import load
from places import ROOT

from data_gen.traces.features import feature_bytes


def test_no_trace_of_a_part_repeats_another() -> None:
    script = load("driver_writing")
    traces = script.made_up_traces(hidden_size=8, steps=4)
    assert len({tuple(trace.token_ids) for trace in traces}) == len(traces) == 256
    assert len({trace.hidden_SH.numpy().tobytes() for trace in traces}) == len(traces)
    for trace in traces:
        assert trace.hidden_SH.shape == (len(trace.boundary_positions), 8)
        assert trace.boundary_positions[-1] == len(trace.token_ids) - 1


def test_a_run_writes_every_trace_with_its_states(tmp_path: Path) -> None:
    questions = tmp_path / "q.jsonl"
    questions.write_text("".join(f'{{"question": "S {n}+1", "answer": "{n}"}}\n' for n in range(5)))
    command = [sys.executable, str(ROOT / "benchmarks" / "driver_writing.py")]
    command += ["--questions", str(questions), "--hidden-sizes", "16", "64", "--steps", "6"]
    command += ["--repeats", "1", "--work", str(tmp_path), "--out", str(tmp_path / "figures.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures == json.loads(done.stdout)
    assert list(figures["medians"]) == ["16", "64"]
    for run in figures["runs"]:
        assert run["traces"] == 5 * 64
        assert run["parts"] == 2
        whole = feature_bytes(6, run["hidden_size"], torch.float16) / 1e6
        assert run["states_mb_a_trace"] == pytest.approx(whole, abs=6e-4)
        assert run["traces_per_second"] == pytest.approx(320 / run["seconds"], rel=0.05)
        assert run["cpu_ms_a_trace"] > 0
    assert not list(tmp_path.glob("tmp*")), "what was written for the figures is removed"
