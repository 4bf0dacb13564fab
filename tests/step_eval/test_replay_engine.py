"""A replay on real engines: lengths, scores and victims as foreseen; killed and resumed."""

import subprocess
import sys
import time

import pytest
from command_harness import run_command
from held_process import held_at
from places import CHECKPOINT, ROOT

from step_eval.command import main
from step_eval.comparison import outcome
from step_eval.recorded.files import read_table
from step_eval.records import RecordStore
from step_eval.simulation.question import Setting, run_question
from step_eval.simulation.schedule import Pruning
from step_eval.simulation.timing import engine_shape
from step_infer.storage.files import read_json
from step_infer.storage.run_directory import read_manifest

pytestmark = pytest.mark.engine

RECORDED = ROOT / "benchmarks" / "recorded" / "ledger.parquet"
QUESTIONS, NUM_TRACES = 2, 16
METHODS = ("sc", "step", "oracle", "least-confident")
DECIDED = "step+decided"
OPTIONS = ("--shape", CHECKPOINT / "config.json", "--length-scale", "0.4", "--traces", RECORDED)
OPTIONS += ("--limit", QUESTIONS, "--kv-budget", "0.4", "--num-traces", NUM_TRACES)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the directory of a replay that was killed in its second method, and went on."""
    out = tmp_path_factory.mktemp("replay") / "out"
    options = [*OPTIONS, "--out", out, "--methods", ",".join(METHODS)]
    cache = str(tmp_path_factory.getbasetemp() / "cache")
    killed = subprocess.Popen(
        [sys.executable, "-m", "step_eval.command", "replay", *map(str, options)],
        env={**held_at("step-r0.jsonl", 2), "XDG_CACHE_HOME": cache},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    first = out / "records" / "step-r0.jsonl"
    deadline = time.monotonic() + 400
    while not first.exists() or not first.read_bytes():
        assert killed.poll() is None, "it ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    before = {path.name: path.read_bytes() for path in first.parent.iterdir()}
    assert before["step-r0.jsonl"].count(b"\n") < QUESTIONS
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("XDG_CACHE_HOME", cache)
        found = run_command(main, "replay", *options)
    assert found.returncode == 0, found.stderr[-3000:]
    return out, before, found


@pytest.fixture(scope="module")
def pool(run):
    return read_table(RECORDED).scaled(read_manifest(run[0])["settings"]["replay.factor"])


def test_a_killed_replay_goes_on_and_keeps_what_was_done(run):
    out, before, found = run
    for name, content in before.items():
        assert (out / "records" / name).read_bytes().startswith(content)
    assert "SC: 0 questions to ask, 2 done before" in found.stdout
    results = read_json(out / "results.json")
    assert [method["questions"] for method in results["methods"].values()] == [QUESTIONS] * 4
    assert "random weights" in results["model"]
    assert "time is real, text is not" in found.stdout


def test_traces_come_out_as_recorded(run, pool):
    questions = {question.question_id: question for question in pool.questions}
    for method, group in RecordStore(run[0]).read().items():
        for record in group:
            recorded = questions[record.question_id].traces[:NUM_TRACES]
            for trace, source in zip(record.traces, recorded, strict=True):
                count = len(trace.positions)
                assert tuple(trace.positions) == source.positions[:count]
                if method != "sc":
                    assert trace.scores == pytest.approx(source.scores[:count], abs=1e-4)
                if trace.pruned:
                    assert trace.tokens < source.tokens
                    assert trace.answer is None
                else:
                    assert (trace.tokens, count) == (source.tokens, len(source.positions))
                    assert bool(trace.correct) == source.right


def test_the_engine_prunes_and_preempts_as_the_simulation_foresees(run, pool):
    manifest = read_manifest(run[0])
    questions = {question.question_id: question for question in pool.questions}
    records = RecordStore(run[0]).read()
    assert set(records) == set(METHODS)
    for method, group in records.items():
        for record in group:
            question = questions[record.question_id]
            setting = Setting(method, engine_shape(manifest, record), Pruning("min"))
            traces = question.traces[:NUM_TRACES]
            foreseen = run_question(setting, traces, question.prompt_tokens)
            lost = {index for index, trace in enumerate(record.traces) if trace.pruned}
            # Requests reach the real engine one by one, so some start a step or two later.
            assert len(lost ^ set(foreseen.pruned)) <= 2
            assert bool(lost) == (method != "sc")
            assert record.preemptions == pytest.approx(len(foreseen.preempted), abs=2)
            assert bool(record.preemptions) == (method == "sc")


def test_traces_that_a_decided_vote_ends_keep_their_recorded_steps(
    run, pool, tmp_path, monkeypatch, tmp_path_factory
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    found = run_command(main, "replay", *OPTIONS, "--out", tmp_path / "out", "--methods", DECIDED)
    assert found.returncode == 0, found.stderr[-3000:]
    questions = {question.question_id: question for question in pool.questions}
    whole = {record.key: record for record in RecordStore(run[0]).read()["step"]}
    ended = 0
    for record in RecordStore(tmp_path / "out").read()[DECIDED]:
        recorded = questions[record.question_id].traces[:NUM_TRACES]
        for trace, source in zip(record.traces, recorded, strict=True):
            assert tuple(trace.positions) == source.positions[: len(trace.positions)]
            if trace.closed:
                ended += 1
                assert trace.tokens < source.tokens
                assert trace.answer is None
                assert len(trace.positions) == sum(at < trace.tokens for at in source.positions)
        before = whole[record.key]
        assert outcome(record, "score").answer == outcome(before, "score").answer
        assert record.ended == ("decided" if any(t.closed for t in record.traces) else "finished")
    assert ended > 0


def test_the_oracle_of_a_replay_knows_the_recording(run, pool):
    questions = {question.question_id: question for question in pool.questions}
    for record in RecordStore(run[0]).read()["oracle"]:
        right = [trace.right for trace in questions[record.question_id].traces]
        for victim in (trace for trace in record.traces if trace.pruned):
            for trace in record.traces:
                spared = trace.finished_s > victim.finished_s and bool(trace.scores)
                assert not (right[victim.trace_id] and spared and not right[trace.trace_id])


def test_time_and_waiting_are_measured(run):
    records = RecordStore(run[0]).read()
    for method, group in records.items():
        for record in group:
            assert record.seconds > 0
            ends = [trace.finished_s for trace in record.traces]
            assert max(ends) == pytest.approx(record.seconds, abs=1e-3)
            assert record.running_trace_s > 0
            assert (record.waiting_trace_s > 0) == (method == "sc")
