"""benchmarks/real_model_gpu.sh on a pretended engine: methods, shards, memories; and going on."""

import json
import os
import subprocess
from collections import Counter

import pytest
from places import CHECKPOINT, ROOT, SCORER
from pretended_python import pretended_python

pytestmark = pytest.mark.nightly

RECIPE = """
model: unused
system: ''
sampling: {temperature: 1.0, top_p: 1.0, top_k: 0, max_tokens: 1024}
engine: {max_model_len: 2400}
"""
QUESTIONS, NUM_TRACES = 4, 8
METHODS = ("sc", "step+decided", "deepconf-low", "sc-offload")


@pytest.mark.timeout(1800)
def test_all_methods_have_a_row_of_each_question_and_a_run_goes_on(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    questions = tmp_path / "questions.jsonl"
    row = {"question": "1+2 mod 1000 = ?", "answer": "3"}
    questions.write_text(
        "".join(json.dumps(row | {"id": f"q{n}"}) + "\n" for n in range(QUESTIONS))
    )
    settings = {
        "PYTHON": pretended_python(tmp_path),
        "OUT": tmp_path / "out",
        "RECIPE": tmp_path / "recipe.yaml",
        "MODEL": CHECKPOINT,
        "SCORER": SCORER,
        "QUESTIONS": questions,
        "N": NUM_TRACES,
        "SHARDS": 2,
        "KV_TOKENS": "3000 4000",
        "METHODS": " ".join(METHODS),
        "SECONDS_TOTAL": 1200,
    }

    def run():
        environment = os.environ | {name: str(value) for name, value in settings.items()}
        script = ["bash", str(ROOT / "benchmarks" / "real_model_gpu.sh")]
        found = subprocess.run(
            script, env=environment, capture_output=True, text=True, timeout=1500, check=False
        )
        assert found.returncode == 0, found.stderr[-3000:]
        rows = (tmp_path / "out" / "rows.jsonl").read_text().splitlines()
        return [json.loads(row) for row in rows], found.stdout

    rows, shown = run()
    expected = {(f"KV {kv}", method): QUESTIONS for kv in (3000, 4000) for method in METHODS}
    assert Counter((row["setting"], row["method"]) for row in rows) == expected
    assert f"KV 4000, step+decided, {QUESTIONS} questions" in shown
    config = tmp_path / "out" / "work" / "3000" / "sc-offload-1" / "manifest.json"
    assert "OffloadingConnector" in config.read_text()
    assert run()[0] == rows
