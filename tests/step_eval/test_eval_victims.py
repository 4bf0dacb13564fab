"""step-eval with other victims, one trace and all methods, on a pretended engine."""

from pathlib import Path

import pytest
from fake_engine import FakeEngine, made_up_model, made_up_scorer, write_questions
from rich.console import Console

from step_eval import measure
from step_eval.comparison import outcome
from step_eval.config import EvalConfig
from step_eval.merge import merge
from step_eval.methods.registry import METHODS, method_names
from step_eval.methods.victims import ABLATIONS, VICTIMS
from step_eval.records import RecordStore
from step_eval.replay.config import ReplayConfig
from step_eval.report.html import render_report
from step_eval.report.table import print_results
from step_eval.results import build_results, read_run, write_results
from step_eval.run import evaluate
from step_eval.simulation.config import METHODS as SIMULATED
from step_infer.errors import InputError

pytestmark = pytest.mark.slow

QUESTIONS, TRACES = 6, 12
VICTIM_METHODS = "sc,step,single," + ",".join(ABLATIONS)


@pytest.fixture(scope="module", autouse=True)
def _a_reading_at_every_step():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "SAMPLE_S", 1e-9)
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Return a function that makes settings for an output directory."""
    folder = tmp_path_factory.mktemp("inputs")
    model = made_up_model(folder)
    inputs = {
        "model": model,
        "scorer": made_up_scorer(folder / "scorer" / "scorer.safetensors", model),
        "questions": write_questions(folder / "questions.jsonl", QUESTIONS),
    }

    def make(out, **changes):
        values = {"num_traces": TRACES, "kv_budget_tokens": 3000, "system": "", "repeats": 2}
        values["out"] = str(out)
        return EvalConfig(**{**inputs, **values, **changes})

    return make


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """One complete run: settings and results."""
    settings = config(tmp_path_factory.mktemp("run") / "out", methods=VICTIM_METHODS)
    return settings, evaluate(settings, FakeEngine, quiet())


def quiet():
    return Console(quiet=True)


def test_all_stands_for_every_method():
    assert method_names("all") == list(METHODS)
    replayed = ReplayConfig(traces="t", out="o", methods="all").method_names
    assert set(METHODS) - set(replayed) == {"slim-sc", "branch", "branch-random"}
    assert set(ABLATIONS) <= set(METHODS)
    assert set(ABLATIONS) <= set(SIMULATED)
    assert {ablation.victim for ablation in ABLATIONS.values()} < set(VICTIMS)


def test_the_ablations_differ_from_step_by_the_victim_only(run):
    settings, results = run
    step = METHODS["step"].engine_options(settings)
    for name, ablation in ABLATIONS.items():
        options = METHODS[name].engine_options(settings)
        changed = {key for key, value in options.items() if value != step.get(key)}
        expected = {"scheduler_cls", "additional_config"} | (
            {"confidence"} if name == "least-confident" else set()
        )
        assert changed == expected, name
        assert options["additional_config"] == {"step_eval": {"victim": ablation.victim}}
        assert (METHODS[name].vote, results["methods"][name]["vote"]) == ("score", "score")


def test_every_method_prunes_and_chooses_otherwise(run):
    records = RecordStore(run[0].out).read()
    pruned = {}
    for name in ("step", *ABLATIONS):
        assert len(records[name]) == 2 * QUESTIONS
        pruned[name] = [frozenset(t.trace_id for t in r.traces if t.pruned) for r in records[name]]
        assert all(pruned[name])
    # The pretended traces are all of one length, so that youngest and longest are the same.
    assert len(set(map(tuple, pruned.values()))) == len(pruned) - 1


def test_random_victims_follow_from_the_seed(run, config, tmp_path):
    def victims(out):
        records = RecordStore(out).read(["random"])["random"]
        return [(r.key, sorted(t.trace_id for t in r.traces if t.pruned)) for r in records]

    again = config(tmp_path / "again", methods="random")
    evaluate(again, FakeEngine, quiet())
    assert victims(again.out) == victims(run[0].out)
    other = config(tmp_path / "other", methods="random", seed=7)
    evaluate(other, FakeEngine, quiet())
    assert victims(other.out) != victims(run[0].out)
    of = dict(victims(again.out))
    assert any(of[0, f"q{n:03d}"] != of[1, f"q{n:03d}"] for n in range(QUESTIONS))


def test_the_oracle_stops_a_right_trace_only_when_no_wrong_one_runs(run):
    records = RecordStore(run[0].out).read()
    right = {(r.key, t.trace_id): t.correct is True for r in records["sc"] for t in r.traces}
    stopped = 0
    for record in records["oracle"]:
        for victim in (t for t in record.traces if t.pruned):
            stopped += 1
            if right[record.key, victim.trace_id]:
                assert not [
                    t
                    for t in record.traces
                    if not right[record.key, t.trace_id] and t.finished_s > victim.finished_s
                ]
    assert stopped > QUESTIONS
    wrong = {
        name: sum(not right[r.key, t.trace_id] for r in records[name] for t in r.traces if t.pruned)
        for name in ("oracle", "random")
    }
    assert wrong["oracle"] > wrong["random"]


def test_the_oracle_asks_for_the_method_sc(run, config, tmp_path):
    with pytest.raises(
        InputError,
        match="sc to have answered question q000, repeat 0, .* in .*/out. Hint: --methods sc,or",
    ):
        evaluate(config(tmp_path / "out", methods="step,oracle"), FakeEngine, quiet())
    assert not (tmp_path / "out" / "records").exists()
    # Named after it, it still comes first.
    results = evaluate(config(tmp_path / "both", methods="oracle,sc"), FakeEngine, quiet())
    assert results["methods"]["oracle"]["questions"] == QUESTIONS
    elsewhere = config(tmp_path / "from", methods="oracle", oracle_from=run[0].out)
    evaluate(elsewhere, FakeEngine, quiet())
    found, known = (
        [[t.finish_reason for t in r.traces] for r in RecordStore(out).read(["oracle"])["oracle"]]
        for out in (elsewhere.out, run[0].out)
    )
    assert found == known
    part = config(tmp_path / "part", methods="sc", limit=2, repeats=1)
    evaluate(part, FakeEngine, quiet())
    partly = config(tmp_path / "partly", methods="oracle", oracle_from=part.out)
    evaluate(partly, FakeEngine, quiet())
    records = RecordStore(partly.out).read()["oracle"]
    assert [r.key for r in records] == [(0, "q000"), (0, "q001")]
    with pytest.raises(
        InputError, match=r"--oracle-from a run with the same seed \(5\), found 0 in .* Hint"
    ):
        evaluate(
            config(tmp_path / "seed", methods="oracle", seed=5, oracle_from=run[0].out),
            FakeEngine,
            quiet(),
        )
    with pytest.raises(InputError, match="the method oracle beside --oracle-from, found none"):
        config(tmp_path / "none", methods="sc", oracle_from=run[0].out)


def test_single_asks_for_the_first_trace_only(run):
    records = RecordStore(run[0].out).read()
    for whole, single in zip(records["sc"], records["single"], strict=True):
        assert [(t.trace_id, t.seed) for t in single.traces] == [(0, whole.traces[0].seed)]
        assert outcome(single, "uniform").right == (whole.traces[0].correct is True)
    found = run[1]["methods"]["single"]["metrics"]
    assert found["tokens"]["value"] < run[1]["methods"]["sc"]["metrics"]["tokens"]["value"] / 6


def test_many_methods_have_a_row_each_and_a_colour_each(run, capsys):
    print_results(run[1], Console(width=150))
    text = capsys.readouterr().out
    for name in run[1]["methods"]:
        assert METHODS[name].label in text
    manifest, records = read_run(run[0].out)
    page = render_report(build_results(manifest, records, draws=50), records)
    for index in range(len(records)):
        assert f"var(--series-{index})" in page
        assert f"--series-{index}:" in page


def test_the_vote_by_confidence_needs_recorded_ones(run, config, tmp_path, capsys):
    with pytest.raises(InputError, match="--confidence true beside --vote confidence"):
        config(tmp_path / "out", vote="confidence")
    settings = config(
        tmp_path / "out", methods="sc,step", vote="confidence", confidence=True, repeats=1
    )
    results = evaluate(settings, FakeEngine, quiet())
    step, sc = results["methods"]["step"], results["methods"]["sc"]
    assert (step["vote"], sc["vote"]) == ("confidence", "uniform")
    assert step["metrics"]["accuracy"]["value"] == step["accuracy_by_vote"]["confidence"]
    assert "confidence" not in sc["accuracy_by_vote"]
    print_results(results, Console(width=150))
    assert "SC: nothing was recorded for the vote confidence; each trace has one vote." in (
        capsys.readouterr().out
    )
    assert (
        "uniform (nothing recorded for confidence)"
        in (Path(settings.out) / "report.html").read_text()
    )
    # Recorded under none but the one that goes by it.
    later = write_results(run[0].out, "confidence")
    recorded = {name for name, m in later["methods"].items() if m["vote"] == "confidence"}
    assert recorded == {"least-confident"}
    write_results(run[0].out)


def test_a_join_of_methods_can_be_cut_to_what_all_have_answered(run, config, tmp_path):
    outs = []
    for name, limit in (("sc", 4), ("step", 6), ("random", 3)):
        outs.append(str(tmp_path / name))
        evaluate(config(outs[-1], methods=name, limit=limit, repeats=1), FakeEngine, quiet())
    results = merge(outs, str(tmp_path / "joined"), paired=True)
    assert {n: len(rows) for n, rows in results["latency"].items()} == {
        "sc": 3,
        "step": 3,
        "random": 3,
    }
    assert {c["pairs"] for c in results["comparisons"].values()} == {3}
    whole = merge(outs, str(tmp_path / "joined"))
    assert len(whole["latency"]["step"]) == 6
    lonely = str(tmp_path / "lonely")
    evaluate(config(lonely, methods="longest", limit=5, repeats=1), FakeEngine, quiet())
    path = RecordStore(lonely).path("longest", 0)
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[-1])
    with pytest.raises(InputError, match="every method has answered beside --paired, found none"):
        merge([*outs, lonely], str(tmp_path / "joined"), paired=True)
