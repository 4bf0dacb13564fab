"""`step-eval simulate`: drawn traces, made-up scorers, timing, break-even, report."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from made_records import record, trace
from places import SCORER

from data_gen.traces.features import write_shard
from data_gen.traces.table import write_part
from step_eval.command import command
from step_eval.recorded.files import read_pool, record_traces
from step_eval.recorded.traces import PoolQuestion, PoolTrace, TracePool
from step_eval.records import AnswerRecord, QuestionRecord, RecordStore, TraceRecord
from step_eval.report.words import number
from step_eval.results import KIND
from step_eval.simulation import timing as timing_module
from step_eval.simulation.config import SimulateConfig
from step_eval.simulation.drawn import DrawnTraces, draw_pool
from step_eval.simulation.question import Setting, figures, run_question
from step_eval.simulation.schedule import EngineShape, Pruning
from step_eval.simulation.scores import tuned_scores, within_auroc
from step_eval.simulation.sweep import crossing, run_task
from step_eval.simulation.timing import Timing, fit_timing, read_timing
from step_eval.simulation.traces import block_contents
from step_infer.errors import InputError
from step_infer.scorer.network import load_scorer
from step_infer.storage.run_directory import run_manifest, write_manifest

SMALL = DrawnTraces(right_tokens=200, wrong_tokens=260, step_tokens=20)


@pytest.fixture(scope="module")
def pool():
    return draw_pool(SMALL, 24, 16, seed=0)


@pytest.mark.parametrize("aggregator", ["mean", "last"])
@pytest.mark.parametrize("target", [0.5, 0.7, 0.9])
def test_a_made_up_scorer_has_the_auroc_asked_for(target, aggregator):
    pool = draw_pool(SMALL, 150, 16, seed=0)
    scores, reached = tuned_scores(pool, target, 0.5, aggregator, seed=1)
    assert reached == pytest.approx(target, abs=0.05 if target == 0.5 else 0.01)
    assert within_auroc(pool, scores.__getitem__, 0.5, aggregator) == reached
    late = within_auroc(pool, scores.__getitem__, 1.0, aggregator)
    assert late > reached if target > 0.5 else late == pytest.approx(0.5, abs=0.05)


def test_without_an_early_boundary_no_scorer_can_be_tuned(pool):
    with pytest.raises(InputError, match=r"first 0%, found none. Hint: take other traces"):
        tuned_scores(pool, 0.7, 0.001, "mean", seed=1)


def test_length_scale_moves_boundaries_and_keeps_their_scores():
    text = np.arange(100)
    trace = PoolTrace(100, (9, 49, 97), "1", True, scores=(0.1, 0.5, 0.9), text=text)
    question = PoolQuestion("q", 5, (trace,))
    [longer] = TracePool((question,), "test").scaled(2).questions[0].traces
    assert (longer.tokens, longer.positions, longer.scores) == (200, (19, 99, 195), trace.scores)
    assert longer.text.tolist() == np.repeat(text, 2).tolist()
    [shorter] = TracePool((question,), "test").scaled(0.1).questions[0].traces
    assert (shorter.tokens, shorter.positions, shorter.scores) == (10, (0, 4), (0.1, 0.5))


def test_blocks_are_equal_where_all_text_before_them_is():
    texts = ([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 9, 6], [8, 2, 3, 4, 5, 6])
    traces = [PoolTrace(6, (), "1", True, text=np.array(t)) for t in texts]
    assert block_contents(traces, 2, 2) == [
        [0, 1, 2, 3],
        [0, 1, 2, 4],
        [0, 5, 6, 7],
    ]
    assert block_contents([*traces, PoolTrace(6, (), "1", True)], 2, 2) is None


def test_an_oracle_prunes_wrong_traces_only_while_there_are_any():
    traces = [PoolTrace(90, tuple(range(4, 88, 5)), "1" if n < 4 else "2", n < 4) for n in range(8)]
    scores = [[0.5 + 0.01 * n] * 17 for n in range(8)]  # the right ones have the lowest scores
    for method, pruned in (("oracle", {4, 5, 6, 7}), ("step", {0, 1, 2, 3})):
        setting = Setting(method, EngineShape(30, 16), Pruning())
        schedule = run_question(setting, traces, 10, scores)
        assert len(schedule.pruned) >= 3
        assert set(schedule.pruned) <= pruned
        found = figures(schedule, setting, traces, Timing(), scores)
        assert found["accuracy"] == (method == "oracle")


def test_more_auroc_never_costs_accuracy_and_pruning_saves_time(pool):
    config = SimulateConfig("unused", drawn=SMALL, num_traces=[16], kv_budget=[0.3])
    timing = Timing(0.01, 0.001, 1e-6, 1e-4, 0.0, "test", "seconds")
    [sc] = run_task(config, pool, timing, (1.0, None))
    by_auroc = {}
    for auroc in (0.5, 0.9):
        cells = run_task(config, pool, timing, (1.0, auroc))
        by_auroc[auroc] = next(cell for cell in cells if cell.method == "step")
    means = {auroc: np.mean(cell.figures["accuracy"]) for auroc, cell in by_auroc.items()}
    assert means[0.9] > means[0.5]
    assert means[0.9] > np.mean(sc.figures["accuracy"])
    assert np.mean(by_auroc[0.9].figures["seconds"]) < 0.9 * np.mean(sc.figures["seconds"])
    assert np.mean(sc.figures["preemptions"]) > 1
    assert np.sum(by_auroc[0.9].figures["preemptions"]) == 0


def test_break_even_is_where_the_gain_crosses_zero():
    auroc = np.array([0.5, 0.6, 0.7])
    assert crossing(auroc, np.array([-0.2, -0.1, 0.1])) == pytest.approx(0.65)
    assert crossing(auroc, np.array([-0.1, -0.2, -0.1])) == np.inf
    assert crossing(auroc, np.array([0.0, 0.1, 0.2])) == 0.5
    # A dip behind a gain is taken for noise: both count with their mean.
    assert crossing(auroc, np.array([-0.3, 0.2, -0.1])) == pytest.approx(0.5 + 0.1 * 0.3 / 0.35)


def test_timing_is_four_costs_or_five_or_steps():
    assert read_timing(None).of_engine(True).seconds((7, 1, 1, 1)) == 7
    assert read_timing("1,2,3,4").of_engine(True).seconds((1, 10, 100, 1000)) == 4321
    timing = read_timing("1,2,3,4,5")
    assert timing.of_engine(False).seconds((2, 10, 100, 1000)) == 4322
    assert timing.of_engine(True).seconds((2, 10, 100, 1000)) == 4332
    with pytest.raises(InputError, match=r"PREFILL\[,SCORING\] in seconds, found '1,2'"):
        read_timing("1,2")


@pytest.mark.parametrize("methods", [("sc",), ("sc", "step")])
def test_costs_are_found_in_the_records_of_an_engine(monkeypatch, methods):
    true = Timing(0.01, 1e-4, 2e-8, 2e-5, 0.003 if "step" in methods else 0.0)
    shape = EngineShape(40, 16)  # short: traces are preempted
    random = np.random.default_rng(0)
    manifest = {"settings": {"engine.max_num_seqs": 256}, "device": "GPU"}
    records = {}
    for method in methods:
        records[method] = []
        for asked in range(6):
            lengths = random.integers(20, 160, size=8)
            traces = [trace(n, tokens=int(tokens)) for n, tokens in enumerate(lengths)]
            found = record(f"q{asked}", traces, method=method)
            found.kv_capacity_tokens = shape.kv_blocks * shape.block_size
            pool = record_traces(found)
            schedule = run_question(Setting("sc", shape, Pruning()), pool, found.prompt_tokens)
            for index, work in schedule.ended_after.items():
                traces[index].finished_s = true.of_engine(method == "step").seconds(work)
            records[method].append(found)
    monkeypatch.setattr(timing_module, "read_run", lambda _: (manifest, records))
    fitted = fit_timing("run")
    assert fitted.step == pytest.approx(true.step, rel=0.02)
    assert fitted.scoring == pytest.approx(true.scoring, rel=0.02)
    assert ("STEP" in fitted.source) == ("step" in methods)
    work = (100, 800, 200_000, 160)
    for scores in (False, True):
        expected = true.of_engine(scores).seconds(work)
        assert fitted.of_engine(scores).seconds(work) == pytest.approx(expected, rel=0.02)


def test_stored_states_are_scored_as_the_scorer_does(tmp_path):
    torch.manual_seed(0)
    counts = [3, 0, 2]
    hidden = [torch.randn(count, 256).bfloat16() for count in counts]
    positions = [[4, 9, 14], [], [2, 7]]
    starts = write_shard(tmp_path / "features" / "shard-00000.safetensors", hidden, positions)
    rows = [
        {
            "question_id": "a",
            "trace_id": number,
            "seed": 0,
            "question": "?",
            "prompt_token_ids": [1, 2],
            "token_ids": list(range(20)),
            "text": "",
            "finish_reason": "stop" if number else "length",
            "extracted_answer": str(number),
            "is_correct": number == 2,
            "answer_group": number,
            "boundary_positions": positions[number],
            "shard": 0,
            "row_start": starts[number],
            "num_steps": counts[number],
        }
        for number in (2, 0, 1)
    ]
    write_part(tmp_path / "traces" / "part-00000.parquet", rows)
    part = {
        kind: {"file": file, "bytes": (tmp_path / file).stat().st_size, "rows": rows, "sha256": ""}
        for kind, file, rows in (
            ("traces", "traces/part-00000.parquet", 3),
            ("features", "features/shard-00000.safetensors", 5),
        )
    }
    write_manifest(tmp_path, run_manifest(kind="traces", parts=[part]))
    found = read_pool(tmp_path, str(SCORER))
    scorer, card = load_scorer(SCORER)
    assert found.aggregator == card.aggregator
    [question] = found.questions
    assert question.prompt_tokens == 2
    assert [t.positions for t in question.traces] == [tuple(p) for p in positions]
    assert [t.cut for t in question.traces] == [True, False, False]
    assert [t.answer for t in question.traces] == ["0", "1", "right"]
    for recorded, states in zip(question.traces, hidden, strict=True):
        expected = torch.sigmoid(scorer(states)).tolist()
        assert recorded.scores == pytest.approx(expected, abs=1e-6)
    assert not read_pool(tmp_path).scored


def recorded(folder, *methods):
    """Make a directory of step-eval in which traces of the methods but sc have children."""
    write_manifest(folder, run_manifest(kind=KIND, question_ids=["q"], repeats=1))
    whole = {"seed": None, "finish_reason": "stop", "answer": "7", "group": 0, "correct": True}
    whole |= {"score": 0.5, "positions": [9, 19], "scores": [0.5, 0.6], "prefix_hashes": [1, 2]}
    whole |= {"submitted_s": 0.0, "finished_s": 1.0}
    for method in methods:
        traces = [TraceRecord(trace_id=number, tokens=40 + number, **whole) for number in range(4)]
        if method != "sc":
            traces += [TraceRecord(trace_id=4, tokens=60, parent=0, inherited=20, **whole)]
        RecordStore(folder).append(
            QuestionRecord(
                method=method,
                repeat=0,
                question_id="q",
                truth="7",
                prompt_tokens=5,
                seconds=1.0,
                preemptions=0,
                peak_kv_use=0.5,
                running_trace_s=1.0,
                waiting_trace_s=0.0,
                kv_capacity_tokens=1000,
                answers=[AnswerRecord("7", True)],
                traces=traces,
            )
        )
    return folder


def test_branches_of_a_recorded_run_are_no_traces_to_simulate(tmp_path, capsys):
    """They ran on from their parents' tokens, so none is a draw of its own."""
    run = recorded(tmp_path / "both", "sc", "branch")
    [question] = read_pool(run).questions
    assert [trace.tokens for trace in question.traces] == [40, 41, 42, 43]
    argv = ["simulate", "--out", str(tmp_path / "out"), "--traces", str(run), "--jobs", "1"]
    command([*argv, "--num-traces", "[4]", "--kv-budget", "[1]", "--auroc", "[]"])
    cells = json.loads((tmp_path / "out" / "simulation.json").read_text())["cells"]
    assert {cell["figures"]["tokens"]["value"] for cell in cells if cell["method"] == "sc"} == {166}
    alone = recorded(tmp_path / "alone", "branch")
    with pytest.raises(InputError, match="Expected records of the method sc in .*, found none"):
        command(["simulate", "--out", str(tmp_path / "out"), "--traces", str(alone)])


@pytest.mark.parametrize("columns", ["80", "100", "160"])
def test_a_narrow_terminal_cuts_no_figure(tmp_path, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    options = ["--limit", "4", "--num-traces", "[16]", "--kv-budget", "[0.25]"]
    command(["simulate", *options, "--auroc", "[0.7]", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert max(len(line) for line in printed.splitlines() if "│" in line) <= int(columns)
    cells = json.loads((tmp_path / "simulation.json").read_text())["cells"]
    [figures] = [cell["figures"] for cell in cells if cell["method"] == "step"]
    for name in ("accuracy", "seconds", "tokens", "pruned"):
        assert number(name, figures[name]["value"]) in printed


def test_the_command_writes_results_and_a_page_on_its_own(tmp_path, capsys):
    argv = ["simulate", "--out", str(tmp_path), "--limit", "6", "--jobs", "1"]
    argv += ["--drawn.right_tokens", "150", "--drawn.wrong_tokens", "200"]
    argv += ["--drawn.step_tokens", "20", "--num-traces", "[8]", "--kv-budget", "[0.3, 0.6]"]
    command([*argv, "--auroc", "[0.5, 0.9]", "--methods", "sc,step,oracle"])
    results = json.loads((tmp_path / "simulation.json").read_text())
    assert len(results["cells"]) == 2 + 2 * 2 * 2
    assert len(results["break_even"]) == 2
    page = (tmp_path / "simulation.html").read_text()
    assert page.count("<svg") == 1 + 2
    assert "AUROC from which pruning pays" in page
    assert "The highest need is at 8 traces" in page
    assert "Engine steps" in page
    assert not re.search(r"https?://|src=|@import", page)
    assert "Break-even AUROC, 8 traces" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": "sc,best"}, r"--methods out of sc, .*, found 'best'"),
        ({"auroc": [0.4]}, r"--auroc in \[0.5, 0.99\], found 0.4"),
        ({"kv_budget": []}, r"--kv-budget in \[0.01, 4\], found none"),
        ({"scorer": "x"}, r"Expected --traces beside --scorer"),
        ({"check": "x"}, r"Expected --traces beside --check"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(SimulateConfig("out"), **changes)
