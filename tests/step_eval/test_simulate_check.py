"""step-eval simulate --check: the prediction beside what real engines of the demo world did."""

import pytest
from command_harness import run_command
from places import CHECKPOINT, SCORER

from data_gen import commands as collect
from data_gen.ledger.__main__ import LedgerConfig, write_questions
from step_eval import command as eval_command
from step_infer.storage.files import read_json

pytestmark = [pytest.mark.engine, pytest.mark.nightly, pytest.mark.timeout(1200)]

QUESTIONS, NUM_TRACES = 2, 8


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """Collect traces, answer the same questions under a short KV cache, simulate and check."""
    folder = tmp_path_factory.mktemp("check")
    questions = folder / "questions.jsonl"
    write_questions(LedgerConfig(questions, "test", QUESTIONS, seed=5))
    shared = ["--model", CHECKPOINT, "--questions", questions, "--num-traces", NUM_TRACES]
    shared += ["--system", "", "--sampling.temperature", 1, "--sampling.top-p", 1]
    shared += ["--sampling.top-k", 0, "--engine.max_model_len", 2048]
    done = [run_command(collect.main, *shared, "--out", folder / "traces")]
    options = ["--scorer", SCORER, "--kv-budget", 0.4, "--lengths-from", folder / "traces"]
    options += ["--methods", "sc,step", "--out", folder / "eval"]
    done.append(run_command(eval_command.main, *shared, *options))
    recorded = folder / "recorded.parquet"  # without texts
    options = ["--traces", folder / "traces", "--scorer", SCORER, "--out", recorded]
    done.append(run_command(eval_command.main, "record", *options))
    common = ["--check", folder / "eval", "--timing", folder / "eval", "--auroc", "[0.7]"]
    common += ["--num-traces", f"[{NUM_TRACES}]", "--kv-budget", "[0.4]", "--block-size", 32]
    options = ["--traces", recorded, "--jobs", 1, "--out", folder / "of-recorded"]
    done.append(run_command(eval_command.main, "simulate", *common, *options))
    options = ["--traces", folder / "traces", "--scorer", SCORER, "--jobs", 1]
    done.append(
        run_command(eval_command.main, "simulate", *common, *options, "--out", folder / "out")
    )
    for found in done:
        assert found.returncode == 0, found.stderr[-3000:]
    return folder / "out", done[-1].stdout


def test_what_the_engine_did_is_what_was_predicted(checked):
    methods = read_json(checked[0] / "simulation.json")["check"]["methods"]
    assert {name: found["questions"] for name, found in methods.items()} == {
        "sc": QUESTIONS,
        "step": QUESTIONS,
    }
    sc, step = methods["sc"]["figures"], methods["step"]["figures"]
    # Other batches make other rounding errors: a few traces may go another way than collected.
    assert sc["tokens"]["error"] == pytest.approx(0, abs=0.02)
    assert step["tokens"]["error"] == pytest.approx(0, abs=0.1)
    assert step["pruned"]["measured"] > 1
    assert step["pruned"]["predicted"] == pytest.approx(step["pruned"]["measured"], abs=1)
    assert step["preemptions"]["measured"] == step["preemptions"]["predicted"] == 0
    assert sc["preemptions"]["measured"] > 2
    assert sc["preemptions"]["error"] == pytest.approx(0, abs=0.3)
    # The costs were fitted on the same run's SC.
    assert sc["seconds"]["error"] == pytest.approx(0, abs=0.3)


def test_a_recording_without_texts_predicts_the_same(checked):
    recorded = read_json(checked[0].parent / "of-recorded" / "simulation.json")["check"]
    assert recorded == read_json(checked[0] / "simulation.json")["check"]


def test_the_error_is_told_on_the_terminal_and_the_page(checked):
    out, text = checked
    found = read_json(out / "simulation.json")["check"]
    same = found["methods"]["step"]["same_victims"]
    words = f"In {same} of {QUESTIONS} questions exactly the predicted traces were pruned."
    page = (out / "simulation.html").read_text()
    for place in (text, page):
        assert words in place
        assert "Seconds of STEP against SC: predicted" in place
        assert "Predicted" in place
        assert "Measured" in place
