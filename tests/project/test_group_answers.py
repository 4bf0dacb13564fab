"""benchmarks/group_answers.py: what it times, its arithmetic, and a run."""

import json
import subprocess
import sys
from types import ModuleType

import pytest
from benchmark_script import load
from places import ROOT

from step_infer.client.grading import Grader
from step_infer.errors import InputError

SCRIPT = ROOT / "benchmarks" / "group_answers.py"
_INTEGRAL = r"\int_0^1 t\,dt"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load("group_answers")


def test_a_caller_is_timed_with_comparisons_open_and_with_none(script: ModuleType) -> None:
    with Grader() as grader:
        seconds = script.as_traces_end(["1/2", None, "0.5", _INTEGRAL], grader)
        assert grader.pending(["1/2", "0.5", _INTEGRAL]) == set()
        assert seconds["all_traces"] >= seconds["slowest_trace"] > 0
        assert script.as_traces_end([], grader)["slowest_trace"] == 0
        assert script.at_once(["1/2", "0.5"], grader)["at_once"] > 0


def test_of_each_question_the_least_counts(script: ModuleType) -> None:
    passes = [
        [{"at_once": 0.004}, {"at_once": 0.002}],
        [{"at_once": 0.003}, {"at_once": 0.009}],
        [{"other": 1.0}, {"other": 1.0}],
    ]
    found = script.figures([["1", "1", None], ["2", "3"]], passes)
    assert (found["questions"], found["answers"]) == (2, 5)
    assert found["different_texts_a_question"] == {"median": 1.5, "most": 2}
    assert found["at_once"] == {"median_ms": 2.5, "worst_ms": 3.0}
    assert found["other"] == {"median_ms": 1000.0, "worst_ms": 1000.0}


@pytest.mark.parametrize("line", ["nonsense", "{}", '{"answers": 3}', '{"answers": [3]}'])
def test_a_line_without_answers_is_refused(
    script: ModuleType, tmp_path_factory: pytest.TempPathFactory, line: str
) -> None:
    path = tmp_path_factory.mktemp("answers") / "answers.jsonl"
    path.write_text('{"answers": ["1", null]}\n' + line)
    with pytest.raises(InputError, match=r"answers.jsonl, line 2, found: .* Hint: one text or nul"):
        script.read_answers(path)


@pytest.mark.nightly
def test_its_figures_name_no_answer(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("answers")
    rows = [{"answers": ["98765", "98766", None]}, {"answers": [_INTEGRAL, "1/2"]}]
    (folder / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = folder / "figures.json"
    command = [sys.executable, str(SCRIPT), str(folder / "some.jsonl"), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(out.read_text())
    assert json.loads(done.stdout) == found
    assert (found["questions"], found["answers"]) == (2, 5)
    for name in ("at_once", "all_traces", "slowest_trace", "after_the_last", "math_verify_start"):
        assert found[name]["worst_ms"] >= found[name]["median_ms"] > 0
    assert "9876" not in done.stdout
