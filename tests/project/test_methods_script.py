"""benchmarks/methods_gpu.sh on a pretended engine: all methods, shards and budgets; going on."""

import os
import subprocess

import pytest
from places import ROOT
from pretended_python import pretended_python

from step_eval.records import RecordStore
from step_infer.storage.files import read_json

pytestmark = pytest.mark.nightly

QUESTIONS, NUM_TRACES = 5, 8
VICTIMS = {"oracle"}


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """Return a function that runs the script, and the folder of its results."""
    folder = tmp_path_factory.mktemp("methods")
    python = pretended_python(folder)
    settings = {
        "PYTHON": python,
        "OUT": folder / "out",
        "N": NUM_TRACES,
        "QUESTIONS": QUESTIONS,
        "REPEATS": 2,
        "SHARDS": 1,
        "PARALLEL": 2,
        "TURNS": 1,
        "BUDGETS": "1.0 0.5",
        "OTHERS": "deepconf-low",
        "VICTIMS": " ".join(sorted(VICTIMS)),
    }

    def run(**changes):
        environment = {**os.environ, **{k: str(v) for k, v in (settings | changes).items()}}
        return subprocess.run(
            ["bash", str(ROOT / "benchmarks" / "methods_gpu.sh")],
            env=environment,
            capture_output=True,
            text=True,
            timeout=1500,
        )

    return run, folder / "out"


def answered(out, budget):
    results = read_json(out / f"kv{budget}.json")
    return {name: sorted(map(tuple, rows)) for name, rows in results["latency"].items()}


@pytest.mark.timeout(1800)
def test_all_methods_answer_the_same_questions_under_every_budget_and_a_cut_run_goes_on(script):
    run, out = script
    none = run(SECONDS_TOTAL=0)
    assert none.returncode == 1
    assert "No method has answered a question" in none.stderr
    found = run(SECONDS_TOTAL=1200)
    assert found.returncode == 0, found.stderr[-3000:]
    ample, short = answered(out, "1.0"), answered(out, "0.5")
    assert set(ample) == {"sc", "step", "single", "deepconf-low"}
    assert set(short) == {"sc", "step", "deepconf-low"} | VICTIMS
    # DeepConf has two engines a shard, each with half of the shard's questions.
    halves = [RecordStore(out / "work" / "kv0.5" / f"deepconf-low-{n}") for n in (0, 1)]
    assert [len(half.read()["deepconf-low"]) for half in halves] == [2 * 3, 2 * 2]
    for rows in (*ample.values(), *short.values()):
        assert [row[:2] for row in rows] == [row[:2] for row in ample["sc"]]
        assert len(rows) == 2 * QUESTIONS
    results = read_json(out / "kv0.5.json")
    assert results["methods"]["oracle"]["metrics"]["pruned"]["value"] > 0
    mean = read_json(out / "kv1.0.json")["methods"]["sc"]["tokens_per_trace"]
    assert results["budget"]["mean_response_tokens"] == pytest.approx(mean)
    assert "STEP" in (out / "kv0.5.txt").read_text()

    # Cut in one method: the others keep what they have, and the join what all have.
    records = out / "work" / "kv0.5" / "oracle-0" / "records"
    (records / "oracle-r1.jsonl").unlink()
    before = {path: path.read_bytes() for path in (out / "work").glob("kv*/*/records/*.jsonl")}
    run(SECONDS_TOTAL=0, BUDGETS="0.5", OTHERS="")
    assert len(answered(out, "0.5")["step"]) == QUESTIONS
    again = run(SECONDS_TOTAL=1200, BUDGETS="0.5", OTHERS="")
    assert again.returncode == 0, again.stderr[-3000:]
    assert all(path.read_bytes() == content for path, content in before.items())
    assert {n: len(rows) for n, rows in answered(out, "0.5").items()} == {
        name: len(rows) for name, rows in short.items()
    }
