"""A whole evaluation on a pretended engine: resume, joining, budgets, refusals."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from fake_engine import FakeEngine, made_up_model, made_up_scorer, write_questions
from rich.console import Console

from step_eval import measure
from step_eval.budget import mean_response_tokens
from step_eval.config import EvalConfig
from step_eval.measure import prefix_hashes
from step_eval.merge import merge
from step_eval.recorded.traces import TracePool
from step_eval.records import RecordStore
from step_eval.report.table import print_results
from step_eval.results import write_results
from step_eval.run import evaluate
from step_eval.simulation.check import check
from step_eval.simulation.timing import Timing, read_timing
from step_infer.client.kinds import AnswerOptions
from step_infer.errors import InputError
from step_infer.scorer.boundary import BoundaryOptions
from step_infer.storage.run_directory import (
    RunDirectory,
    read_manifest,
    run_manifest,
    write_manifest,
)

QUESTIONS = 8


@pytest.fixture(scope="module", autouse=True)
def _a_reading_at_every_step():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "SAMPLE_S", 1e-9)
        yield


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    model = made_up_model(folder)
    return {
        "model": model,
        "scorer": made_up_scorer(folder / "scorer" / "scorer.safetensors", model),
        "questions": write_questions(folder / "questions.jsonl", QUESTIONS),
    }


@pytest.fixture(scope="module")
def config(inputs):
    """Return a function that makes settings for an output directory."""

    def make(out, **changes):
        values = {"num_traces": 12, "kv_budget_tokens": 3000, "system": ""}
        return EvalConfig(**{**inputs, **values, "out": str(out), **changes})

    return make


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """One complete run: settings and results."""
    settings = config(tmp_path_factory.mktemp("run") / "out")
    return settings, evaluate(settings, FakeEngine, quiet())


def quiet():
    return Console(file=open("/dev/null", "w"))  # noqa: SIM115


class Killed(Exception):
    """Stands for a kill: nothing after it runs."""


def engine_that_dies_after(traces):
    class Dying(FakeEngine):
        left = traces

        def stream(self, plans, max_in_flight, on_step=None):
            for trace in super().stream(plans, max_in_flight, on_step):
                if plans[0].question_id != "warm-up":
                    Dying.left -= 1
                    if Dying.left < 0:
                        raise Killed
                yield trace

    return Dying


def content(out):
    """Return the records without what a clock decides."""
    return {
        name: [(r.key, [(t.trace_id, t.answer, t.tokens) for t in r.traces]) for r in group]
        for name, group in RecordStore(out).read().items()
    }


def test_both_methods_answer_every_question_with_the_same_seeds(run):
    settings, results = run
    records = RecordStore(settings.out).read()
    assert {name: len(group) for name, group in records.items()} == {"sc": 8, "step": 8}
    for before, after in zip(records["sc"], records["step"], strict=True):
        assert [t.seed for t in before.traces] == [t.seed for t in after.traces]
        assert len(before.traces) == 12
        assert not any(t.pruned for t in before.traces)
        assert all(t.answer is None for t in after.traces if t.pruned)
    metrics = results["methods"]["step"]["metrics"]
    assert metrics["pruned"]["value"] > 0
    assert metrics["preemptions"]["value"] == 0
    assert results["methods"]["sc"]["metrics"]["preemptions"]["value"] > 0
    assert results["methods"]["sc"]["metrics"]["waiting_share"]["value"] > 0
    assert results["methods"]["step"]["stop_totals"]["known"] == sum(
        t.pruned for r in records["step"] for t in r.traces
    )


def test_another_rule_of_steps_reaches_every_engine(config, inputs, tmp_path):
    started = []

    class Started(FakeEngine):
        def __init__(self, model, **options):
            started.append(options.get("boundary"))
            super().__init__(model, **options)

    bare = config(
        tmp_path / "out", methods="sc", scorer=None, boundary=BoundaryOptions(think_end="[/")
    )
    evaluate(bare, Started, quiet())
    assert {rule.think_end for rule in started} == {"[/"}
    assert read_manifest(bare.out)["settings"]["boundary.think_end"] == "[/"
    with pytest.raises(InputError, match="--boundary.think-end '</think>' beside a scorer"):
        evaluate(dataclasses.replace(bare, scorer=inputs["scorer"]), Started, quiet())


def test_a_run_that_goes_on_keeps_its_prompts(config, tmp_path):
    prompted = []

    class Prompted(FakeEngine):
        def plan(self, *arguments, chat_template_kwargs):
            prompted.append(chat_template_kwargs["strftime_now"]("%Y-%m-%d"))
            return super().plan(*arguments)

    settings = config(tmp_path / "out", methods="sc")
    with pytest.raises(Killed):
        evaluate(settings, engine_that_dies_after(20), quiet())
    manifest = read_manifest(settings.out)
    assert manifest["settings"]["chat_template_kwargs"] == {}
    write_manifest(settings.out, manifest | {"prompt_date": "2001-02-03T04:05:06"})
    with pytest.raises(InputError, match="found chat_template_kwargs {'role': 1}"):
        evaluate(dataclasses.replace(settings, chat_template_kwargs={"role": 1}), Prompted, quiet())
    evaluate(settings, Prompted, quiet())
    assert set(prompted) == {"2001-02-03"}
    assert read_manifest(settings.out)["prompt_date"] == "2001-02-03T04:05:06"


def test_all_files_are_there_and_state_their_schema(run):
    settings, results = run
    out = Path(settings.out)
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
    assert results["schema_version"] == 1
    assert read_manifest(out)["kind"] == "step-eval"
    assert "<svg" in (out / "report.html").read_text()


def test_only_the_first_questions_keep_a_series(run):
    settings, _ = run
    for group in RecordStore(settings.out).read().values():
        assert [r.series is not None for r in group] == [True] * 3 + [False] * 5
        assert max(group[0].series.kv_use) == pytest.approx(group[0].peak_kv_use, abs=1e-4)


@pytest.mark.parametrize("traces", [0, 30, 110])
def test_a_killed_run_goes_on_and_ends_the_same(run, config, tmp_path, traces):
    out = tmp_path / "out"
    with pytest.raises(Killed):
        evaluate(config(out), engine_that_dies_after(traces), quiet())
    done = sum(len(group) for group in RecordStore(out).read().values())
    assert done == traces // 12
    evaluate(config(out), FakeEngine, quiet())
    assert content(out) == content(run[0].out)


def test_a_line_cut_short_by_a_crash_is_asked_again(run, config, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(Killed):
        evaluate(config(out), engine_that_dies_after(30), quiet())
    path = RecordStore(out).path("sc", 0)
    path.write_bytes(path.read_bytes()[:-40])
    evaluate(config(out), FakeEngine, quiet())
    assert content(out) == content(run[0].out)


def test_a_damaged_line_is_named(run, config, tmp_path):
    out = tmp_path / "out"
    evaluate(config(out, limit=2), FakeEngine, quiet())
    path = RecordStore(out).path("sc", 0)
    path.write_bytes(b"{]\n" + path.read_bytes())
    with pytest.raises(InputError, match=r"sc-r0\.jsonl:1: Expected a question record"):
        evaluate(config(out), FakeEngine, quiet())


def test_a_finished_run_starts_no_engine(run):
    def refuse(*_, **__):
        raise AssertionError("an engine was started")

    before = read_manifest(run[0].out)
    evaluate(run[0], refuse, quiet())
    assert read_manifest(run[0].out) == before


def test_a_run_grows_by_questions_methods_and_repeats(run, config, tmp_path):
    out = tmp_path / "out"
    evaluate(config(out, limit=3, methods="sc", scorer=None), FakeEngine, quiet())
    evaluate(config(out, limit=3), FakeEngine, quiet())
    evaluate(config(out), FakeEngine, quiet())
    assert {k: sorted(v) for k, v in content(out).items()} == content(run[0].out)
    results = evaluate(config(out, repeats=2), FakeEngine, quiet())
    assert results["methods"]["sc"]["repeats"] == 2
    groups = RecordStore(out).read()["sc"]
    assert len(groups) == 2 * QUESTIONS
    seeds = [{t.seed for t in r.traces} for r in groups if r.question_id == "q000"]
    assert not seeds[0] & seeds[1]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"seed": 1}, "seed"),
        ({"num_traces": 13}, "num_traces"),
        ({"kv_budget_tokens": 3001}, "kv_budget_tokens"),
        ({"engine": {"dtype": "float32"}}, "engine.dtype"),
        ({"shard": "0/2"}, "shard"),
        ({"min_steps": 3}, "min_steps"),
        ({"answers": AnswerOptions("exact")}, "answers.kind"),
    ],
)
def test_other_settings_in_the_same_directory_are_refused(run, config, change, name):
    with pytest.raises(InputError, match=f"Expected the settings of the run in .*, found {name} "):
        evaluate(config(run[0].out, **change), FakeEngine, quiet())


def test_a_run_that_answered_nothing_gives_way_to_other_settings(config, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(Killed):
        evaluate(config(out), engine_that_dies_after(0), quiet())
    results = evaluate(config(out, kv_budget_tokens=4000, limit=1), FakeEngine, quiet())
    assert results["budget"]["tokens"] == 4000


def test_the_directory_of_another_command_is_left_alone(config, tmp_path):
    write_manifest(tmp_path, run_manifest(kind="traces"))
    with pytest.raises(InputError, match="found another command's"):
        evaluate(config(tmp_path), FakeEngine, quiet())
    assert read_manifest(tmp_path)["kind"] == "traces"


def test_an_empty_shard_is_refused(config, tmp_path):
    with pytest.raises(InputError, match="at least one question in shard 8/9, found 8 in all"):
        evaluate(config(tmp_path / "out", shard="8/9"), FakeEngine, quiet())


def test_two_runs_cannot_write_one_directory(run, config):
    with (
        RunDirectory(run[0].out, "step-eval").claim(),
        pytest.raises(InputError, match="another process that writes there"),
    ):
        evaluate(config(run[0].out), FakeEngine, quiet())


def test_shards_joined_are_the_whole_run(run, config, tmp_path):
    outs = [str(tmp_path / f"part{i}") for i in range(3)]
    for index, out in enumerate(outs):
        memory = {"gpu_memory_utilization": 0.2 + index / 10}  # may differ: the KV budget is given
        evaluate(config(out, shard=f"{index}/3", engine=memory), FakeEngine, quiet())
    joined = merge(outs, str(tmp_path / "joined"))
    assert {k: sorted(v) for k, v in content(tmp_path / "joined").items()} == content(run[0].out)
    metrics = run[1]["methods"]["step"]["metrics"]
    assert joined["methods"]["step"]["metrics"]["accuracy"] == metrics["accuracy"]
    again = merge(outs, str(tmp_path / "joined"))
    assert again["methods"] == joined["methods"]


def test_a_join_tells_the_versions_of_the_runs_and_not_its_own(config, tmp_path):
    """Records come home from another machine to be joined."""
    outs = [str(tmp_path / f"part{i}") for i in range(2)]
    for index, out in enumerate(outs):
        evaluate(config(out, shard=f"{index}/2"), FakeEngine, quiet())
        manifest = read_manifest(out)
        write_manifest(out, {**manifest, "versions": {"vllm": "0.26.0"}, "git_commit": "d8bbd60"})
    joined = merge(outs, str(tmp_path / "joined"))
    assert joined["versions"] == {"vllm": "0.26.0"}
    assert joined["git_commit"] == "d8bbd60"


def test_runs_that_do_not_belong_together_are_not_joined(run, config, tmp_path):
    whole, other = run[0].out, tmp_path / "other"
    evaluate(config(other, seed=1, limit=1), FakeEngine, quiet())
    with pytest.raises(InputError, match="found seed 0 in .* and 1 in"):
        merge([whole, str(other)], str(tmp_path / "joined"))
    kind = tmp_path / "kind"
    evaluate(config(kind, limit=1, answers=AnswerOptions("exact")), FakeEngine, quiet())
    with pytest.raises(InputError, match="found answers.kind 'math' in .* and 'exact' in"):
        merge([whole, str(kind)], str(tmp_path / "joined"))
    with pytest.raises(InputError, match="Expected each question once"):
        merge([whole, whole], str(tmp_path / "joined"))
    with pytest.raises(InputError, match="found one of the runs"):
        merge([whole], whole)
    with pytest.raises(
        InputError, match=f"Expected --out to be empty or an earlier join, found a run in {whole}"
    ):
        merge([str(other)], whole)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match=r"writable output directory at .*loop, found: File exist"):
        merge([str(other)], str(tmp_path / "loop"))


def test_records_without_times_give_no_costs_of_a_step(run, tmp_path):
    shutil.copytree(run[0].out, tmp_path / "out")
    for method in ("sc", "step"):
        path = RecordStore(tmp_path / "out").path(method, 0)
        path.write_text(re.sub(r'"finished_s":[\d.]+', '"finished_s":0', path.read_text()))
    with pytest.raises(InputError, match=r"in .*out that give costs of a step, found none\. Hint"):
        read_timing(str(tmp_path / "out"))


def test_a_run_of_other_questions_checks_nothing(run):
    with pytest.raises(InputError, match=r"with as many traces in .*, found none\. Hint"):
        check(run[0].out, TracePool((), "nothing"), Timing())


def test_an_incomplete_run_says_so(config, tmp_path, capsys):
    out = tmp_path / "out"
    with pytest.raises(Killed):
        evaluate(config(out), engine_that_dies_after(50), quiet())
    results = write_results(out)
    print_results(results, Console(width=120))
    assert "SC: 4 of 8 questions answered so far." in capsys.readouterr().out
    assert "Not complete yet" in (out / "report.html").read_text()


def test_the_budget_comes_from_a_pilot_once(config, tmp_path):
    out = tmp_path / "out"
    started = []

    class Watched(FakeEngine):
        def __init__(self, model, **options):
            super().__init__(model, **options)
            started.append(options["kv_budget_tokens"])

    settings = {"kv_budget_tokens": None, "kv_budget": 0.5, "limit": 3}
    results = evaluate(config(out, **settings), Watched, quiet())
    assert started == [None, results["budget"]["tokens"], results["budget"]["tokens"]]
    mean = results["budget"]["mean_prompt_tokens"] + results["budget"]["mean_response_tokens"]
    assert results["budget"]["tokens"] == round(0.5 * 12 * mean)
    assert "pilot of 2 questions" in results["budget"]["source"]
    started.clear()
    evaluate(config(out, **settings | {"limit": 4}), Watched, quiet())
    assert started == [results["budget"]["tokens"]] * 2


def test_the_budget_comes_from_earlier_lengths(run, config, tmp_path):
    table = pyarrow.table({"token_ids": [[1] * 100, [1] * 300]})
    (tmp_path / "collected" / "traces").mkdir(parents=True)
    file = tmp_path / "collected" / "traces" / "part-00000.parquet"
    pyarrow.parquet.write_table(table, file)
    assert mean_response_tokens(file) == 200
    assert mean_response_tokens(tmp_path / "collected") == 200
    mean = run[1]["methods"]["sc"]["tokens_per_trace"]
    assert mean_response_tokens(run[0].out) == mean
    assert mean_response_tokens(Path(run[0].out) / "results.json") == mean
    settings = {"kv_budget_tokens": None, "kv_budget": 0.5, "limit": 1}
    results = evaluate(
        config(tmp_path / "out", lengths_from=run[0].out, **settings), FakeEngine, quiet()
    )
    assert results["budget"]["mean_response_tokens"] == mean


@pytest.mark.parametrize("name", ["missing", "folder", "text.json", "text.parquet"])
def test_lengths_from_something_else_are_refused(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.json").write_text("{}")
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(InputError, match="Expected "):
        mean_response_tokens(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_traces": 0}, "--num-traces of at least 1, found 0"),
        ({"repeats": 0}, "--repeats of at least 1"),
        ({"kv_budget": 0.0}, r"--kv-budget in \(0, 1\]"),
        ({"kv_budget": 2.0}, "Hint: --kv-budget-tokens"),
        ({"kv_budget_tokens": 0}, "--kv-budget-tokens of at least 1"),
        ({"methods": "sc,stop"}, "found 'stop'"),
        ({"methods": "sc,sc"}, "each method once"),
        ({"methods": " , "}, "found none"),
        ({"scorer": None}, "--scorer FILE for the method step"),
        ({"vote": "loud"}, "Expected a vote out of"),
        ({"shard": "3/3"}, "--shard I/K"),
        ({"shard": "x"}, "--shard I/K"),
        ({"shard": "0/2", "kv_budget_tokens": None, "kv_budget": 0.4}, "beside --shard"),
        ({"aggregator": "median"}, "--aggregator out of"),
        ({"methods": "sc", "scorer": None, "allow_mismatch": ["x"]}, "beside --allow-mismatch"),
    ],
)
def test_bad_settings_are_named(config, change, message):
    with pytest.raises(InputError, match=message):
        config("out", **change)


def test_prefix_hashes_tell_prefixes_apart():
    tokens = list(range(50))
    hashes = prefix_hashes(tokens, [9, 19, 39])
    assert hashes == [prefix_hashes(tokens[: p + 1], [p])[0] for p in (9, 19, 39)]
    tokens[15] = 99
    other = prefix_hashes(tokens, [9, 19, 39])
    assert [a == b for a, b in zip(hashes, other, strict=True)] == [True, False, False]
