"""`step-eval calibrate`: the threshold of the rule `likely`, and what it promises."""

import dataclasses
import math
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from places import SCORER

from data_gen.traces.directory import TraceDirectory
from data_gen.traces.features import write_shard
from data_gen.traces.table import write_part
from step_eval.calibration.config import CalibrateConfig
from step_eval.calibration.run import calibrate
from step_eval.calibration.threshold import (
    LEAST_THRESHOLD,
    Course,
    Stop,
    course,
    find_threshold,
    try_thresholds,
)
from step_eval.command import command
from step_eval.recorded.files import write_table
from step_eval.recorded.traces import PoolQuestion, PoolTrace, TracePool
from step_eval.simulation.deciding import Voting
from step_eval.simulation.drawn import DrawnTraces, draw_pool
from step_eval.simulation.engine import simulate
from step_eval.simulation.schedule import EngineShape, SimulatedTrace
from step_eval.simulation.scores import tuned_scores
from step_eval.simulation.timing import Timing
from step_infer.client.deciding import LEAST_VOTES, likely_rule
from step_infer.errors import InputError
from step_infer.scorer.card import read_card
from step_infer.scorer.network import load_scorer, save_scorer
from step_infer.storage.run_directory import run_manifest, write_manifest

SMALL = DrawnTraces(right_tokens=200, wrong_tokens=260, step_tokens=20)

shares = st.lists(
    st.lists(st.sampled_from([0.0, 0.3, 0.5, 0.8, 0.9, 0.99, 1.0]), min_size=2, max_size=2),
    min_size=1,
    max_size=20,
).map(np.array)


@given(shares, st.floats(0, 3))
def test_no_lower_threshold_would_do(worst_QR, allowed):
    def changed(threshold):
        return (worst_QR >= threshold).mean(axis=1).sum()

    found = find_threshold(worst_QR, allowed)
    if found is None:
        assert changed(1.0) > allowed
        return
    assert LEAST_THRESHOLD <= found <= 1
    assert changed(found) <= allowed + 1e-9
    if found > LEAST_THRESHOLD:
        assert changed(math.nextafter(found, 0)) > allowed


def test_the_share_that_changes_on_new_questions_is_at_most_the_one_asked_for():
    rng = np.random.default_rng(0)
    share, count = 0.05, 60
    rates = []
    for _ in range(400):
        worst_QR = rng.beta(2, 3, (count, 1)) * rng.integers(0, 2, (count, 1))
        threshold = find_threshold(worst_QR, share * (count + 1) - 1)
        new = rng.beta(2, 3, 2000) * rng.integers(0, 2, 2000)
        rates.append(np.mean(new >= threshold))
    assert 0.6 * share < np.mean(rates) < 1.05 * share


def test_a_course_is_where_the_chance_rises_and_whether_the_answer_would_be_another():
    answers = "bbbbaaaaaaaa"
    traces = [PoolTrace(10 * (n + 1), (), answer, True) for n, answer in enumerate(answers)]
    schedule = simulate(EngineShape(1000), [SimulatedTrace("q", 5, t.tokens) for t in traces])
    found = course(schedule, Voting(traces, "uniform"), Timing())
    chances = [stop.chance for stop in found.stops]
    assert chances == sorted(set(chances))
    assert found.stops[0].changed
    assert found.stops[0].time == schedule.ended_after[LEAST_VOTES - 1][0]
    assert found.worst == found.stops[0].chance
    assert not found.at(math.nextafter(found.worst, 1)).changed
    assert found.at(math.inf).tokens == sum(schedule.tokens)
    assert found.unbeatable.time == schedule.ended_after[10][0]


def made(worst, time):
    """Return a course that can stop at a chance for another answer, and later for the right one."""
    end = Stop(math.inf, False, 100.0, 1000.0)
    return Course((Stop(worst, True, time, 500.0), Stop(0.999, False, 80.0, 900.0), end), end)


def test_each_question_is_tried_with_the_threshold_of_the_others():
    rows = [[made(0.6, 40.0)] for _ in range(9)] + [[made(0.9, 50.0)]]
    trial = try_thresholds(rows, 0.0)
    # Without the one at 0.9 the threshold lies at 0.6: that one question changes, and no other.
    assert trial.changed == pytest.approx(0.1)
    assert trial.changed_high == pytest.approx(0.394, abs=1e-3)  # 1 of 10
    assert trial.time.value == pytest.approx((9 * 80 + 50) / 1000 - 1)
    assert trial.tokens.value == pytest.approx((9 * 900 + 500) / 10_000 - 1)
    assert trial.unbeatable_time.value == 0


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Write 60 drawn questions with a made-up scorer's scores."""
    pool = draw_pool(SMALL, 60, 12, seed=0)
    scores, _ = tuned_scores(pool, 0.7, 0.5, "mean", 0)
    questions = [
        dataclasses.replace(
            question,
            traces=tuple(
                dataclasses.replace(trace, scores=tuple(own))
                for trace, own in zip(question.traces, rows, strict=True)
            ),
        )
        for question, rows in zip(pool.questions, scores, strict=True)
    ]
    path = tmp_path_factory.mktemp("recorded") / "table.parquet"
    write_table(path, TracePool(tuple(questions), "a test", "mean"))
    return path


def settings(recorded, out, **changes):
    given = {"scorer": str(SCORER), "most_changed": 0.05, "num_traces": 12, "kv_budget": 0.4}
    given |= {"repeats": 2, "jobs": 1} | changes
    return CalibrateConfig(traces=str(recorded), out=str(out), **given)


def test_the_command_writes_thresholds_into_the_card_and_leaves_the_weights(
    recorded, tmp_path, capsys
):
    out = tmp_path / "scorer.safetensors"
    argv = ["--traces", recorded, "--scorer", SCORER, "--out", out, "--num-traces", 12]
    argv += ["--most-changed", 0.05, "--kv-budget", 0.4, "--repeats", 2, "--jobs", 1]
    command(["calibrate", *map(str, argv)])
    before, after = load_scorer(SCORER), load_scorer(out)
    assert dataclasses.replace(after[1], deciding={}) == before[1]
    for name, tensor in before[0].state_dict().items():
        assert torch.equal(tensor, after[0].state_dict()[name])
    printed = capsys.readouterr().out
    for vote, method in (("uniform", "sc"), ("score", "step")):
        found = after[1].deciding[vote]
        rule = likely_rule(after[1].deciding, vote)
        assert (rule.threshold, rule.least_votes) == (found["threshold"], LEAST_VOTES)
        assert (found["questions"], found["draws"], found["num_traces"]) == (60, 2, 12)
        assert (found["method"], found["kv_budget"]) == (method, 0.4)
        assert found["changed_held_out"] <= 0.1 < found["changed_high_held_out"]
        assert found["time_held_out"]["value"] < found["unbeatable_time_held_out"]["value"] < -0.1
        assert f"{rule.threshold:.6f}" in printed
    assert "taken to be this scorer's" in printed


def test_a_scorer_is_calibrated_in_its_place_and_keeps_what_is_not_found_anew(recorded, tmp_path):
    own = tmp_path / "scorer.safetensors"
    scorer, card = load_scorer(SCORER)
    save_scorer(own, scorer, dataclasses.replace(card, deciding={"score": {"threshold": 0.7}}))
    bare = tmp_path / "bare.parquet"
    pool = draw_pool(SMALL, 25, 12, seed=0)
    write_table(bare, pool)
    calibrate(settings(bare, own, scorer=str(own), num_traces=8))
    deciding = read_card(own).deciding
    assert deciding["score"] == {"threshold": 0.7}
    assert deciding["uniform"]["num_traces"] == 8


def test_simulate_stops_with_the_threshold_of_the_card(recorded, tmp_path, capsys):
    traces = collected(tmp_path, draw_pool(SMALL, 5, 12, seed=0))
    out = tmp_path / "scorer.safetensors"
    calibrate(settings(recorded, out))
    argv = ["--traces", traces, "--scorer", out, "--methods", "sc,sc+likely,step+likely"]
    argv += ["--num-traces", "[12]", "--kv-budget", "[0.4]", "--auroc", "[]", "--jobs", 1]
    command(["simulate", *map(str, argv), "--out", str(tmp_path / "simulated")])
    assert "STEP+likely" in capsys.readouterr().out


def collected(folder, pool):
    """Write the traces of a pool as step-collect does, with random states."""
    rows, hidden, positions = [], [], []
    for question in pool.questions:
        forms = [trace.answer for trace in question.traces]
        for number, trace in enumerate(question.traces):
            hidden.append(torch.randn(len(trace.positions), 256).bfloat16())
            positions.append(list(trace.positions))
            rows.append(
                {
                    "question_id": question.question_id,
                    "trace_id": number,
                    "seed": 0,
                    "question": "?",
                    "prompt_token_ids": [1] * question.prompt_tokens,
                    "token_ids": [len(rows)] * trace.tokens,
                    "text": "",
                    "finish_reason": "stop",
                    "extracted_answer": trace.answer,
                    "is_correct": trace.right,
                    "answer_group": None if trace.answer is None else forms.index(trace.answer),
                    "boundary_positions": positions[-1],
                    "shard": 0,
                    "num_steps": len(trace.positions),
                }
            )
    names = {"traces": "traces/part-00000.parquet", "features": "features/shard-00000.safetensors"}
    starts = write_shard(folder / names["features"], hidden, positions)
    rows = [row | {"row_start": start} for row, start in zip(rows, starts, strict=True)]
    write_part(folder / names["traces"], rows)
    part = {
        kind: {
            "file": file,
            "bytes": (folder / file).stat().st_size,
            "rows": sum(map(len, positions)) if kind == "features" else len(rows),
            "sha256": kind,
        }
        for kind, file in names.items()
    }
    write_manifest(folder, run_manifest(kind="traces", parts=[part]))
    return folder


def test_traces_that_trained_the_scorer_are_told(tmp_path, capsys):
    traces = collected(tmp_path, draw_pool(SMALL, 6, 8, seed=0))
    scorer, card = load_scorer(SCORER)
    trained = {"traces_fingerprint": TraceDirectory(traces).fingerprint}
    own = tmp_path / "own.safetensors"
    save_scorer(own, scorer, dataclasses.replace(card, training=trained))
    for path, told in ((own, True), (SCORER, False)):
        found = settings(traces, tmp_path / "out", scorer=str(path), num_traces=8, most_changed=0.3)
        assert calibrate(found).deciding.keys() == {"uniform", "score"}
        assert ("was trained on questions of" in capsys.readouterr().out) == told


def test_a_vote_that_no_threshold_holds_is_left_out(tmp_path, capsys):
    # Traces that are still running look worthless, and in the end outvote those that have ended.
    early = [PoolTrace(20 + n, (10,), "b", False, scores=(0.5,)) for n in range(4)]
    late = [PoolTrace(60 + n, (10, 50), "a", True, scores=(0.0, 1.0)) for n in range(8)]
    questions = [PoolQuestion(f"q{n}", 5, (*early, *late)) for n in range(19)]
    write_table(tmp_path / "table.parquet", TracePool(tuple(questions), "a test", "last"))
    found = calibrate(settings(tmp_path / "table.parquet", tmp_path / "out"))
    assert found.deciding.keys() == {"uniform"}
    assert found.deciding["uniform"]["threshold"] > 0.9
    assert "No threshold for the vote score" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"most_changed": 0.01}, r"at least 99 questions for --most-changed 0.01, found 60"),
        ({"most_changed": 0.01}, r"give --most-changed 0.0164 or more"),
        ({"num_traces": 13}, r"at least 13 traces of each question in .*, found 12 of drawn-0"),
    ],
)
def test_too_few_traces_or_questions_are_refused(recorded, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        calibrate(settings(recorded, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_the_traces_are_never_written_over(recorded, tmp_path):
    own = tmp_path / "table.parquet"
    shutil.copy(recorded, own)
    with pytest.raises(InputError, match="output file apart from what is read"):
        calibrate(settings(own, own))
