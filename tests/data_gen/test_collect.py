"""Collecting traces: on an engine that pretends, and from the command line."""

import dataclasses
import io
import json
import shutil
import sys
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pyarrow as pa
import pytest
import torch
from collect_engine import CollectEngine, assert_whole
from command_harness import Finished, run_command
from fake_engine import made_up_model, made_up_scorer
from hub_cache import run_beside_two_revisions
from rich.console import Console

from data_gen import collection
from data_gen.collect import collect
from data_gen.commands import main
from data_gen.config import CollectConfig
from data_gen.summary import print_summary
from data_gen.traces.directory import TraceDirectory
from step_eval.config import EvalConfig
from step_infer.client.kinds import AnswerOptions
from step_infer.client.prompt import chat_prompt, load_tokenizer
from step_infer.client.trace import Sampling, Trace, TracePlan
from step_infer.errors import InputError
from step_infer.scorer.boundary import BoundaryOptions

N = 6
QUESTIONS = [
    {"id": "zero", "question": "1-1", "answer": "0"},
    {"id": "one", "question": "3-2", "answer": "1"},
    {"id": "long", "question": "?", "answer": "x" * 3000},  # too long to grade
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with what is read before the engine starts: configuration and tokenizer."""
    from data_gen.ledger.tokenizer import build_tokenizer

    folder = tmp_path_factory.mktemp("model")
    build_tokenizer(512).save_pretrained(folder)
    config = {"hidden_size": CollectEngine.H, "max_position_embeddings": 512}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture
def config(model: str, tmp_path: Path) -> CollectConfig:
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps(q) + "\n" for q in QUESTIONS))
    return CollectConfig(
        model, str(questions), str(tmp_path / "out"), num_traces=N, part_traces=4, system=""
    )


def run(config: CollectConfig, engine: CollectEngine) -> tuple[dict[str, Any], str]:
    printed = io.StringIO()
    summary = collect(config, engine, Console(file=printed, width=200))
    return summary, printed.getvalue()


def test_everything_is_written_once_with_its_states(config: CollectConfig) -> None:
    engine = CollectEngine()
    summary, printed = run(config, engine)
    assert_whole(config, len(QUESTIONS))
    found = TraceDirectory(config.out)
    assert found.complete
    assert found.num_parts == 5
    for index, shard in enumerate(found.shards()):
        for row in found.part(index, ["seed", "row_start", "num_steps"]).to_pylist():
            own = shard.hidden(row["row_start"], row["row_start"] + row["num_steps"])
            assert (own == row["seed"] % 251).all()
    assert engine.closed
    assert engine.started_with is not None
    assert engine.started_with["prune"] is False
    assert engine.started_with["capture"] is True
    assert engine.started_with["confidence"] is True
    assert printed.index("Size estimate") < printed.index("Starting the engine")
    assert "measured" in printed
    assert found.manifest["summary"] == json.loads(json.dumps(summary))


def test_the_summary_counts_what_it_says(config: CollectConfig) -> None:
    summary, printed = run(config, CollectEngine())
    # Traces 1, 2, 4, 5 of a question answer 1, 0, 0, 1; the vote's tie goes to trace 1's answer.
    expected = {
        "questions": 3,
        "traces": 18,
        "right": 4,
        "wrong": 4,
        "no_answer": 6,
        "ungradable": 4,
        "accuracy": 4 / 18,
        "graded_accuracy": 1 / 2,
        "majority_accuracy": 1 / 3,
        "any_accuracy": 2 / 3,
        "boundaries_per_trace": 7 / 6,
        "mean_tokens_right": 13.0,
        "feature_rows": 21,
        "tokens": 3 * (60 + 15),
    }
    assert {name: summary[name] for name in expected} == expected
    assert "questions right by majority vote" in printed


@pytest.mark.parametrize(("no_answer", "told"), [(9, False), (10, True)])
def test_the_summary_says_so_when_most_traces_have_no_answer(
    config: CollectConfig, no_answer: int, told: bool
) -> None:
    summary, printed = run(config, CollectEngine())
    assert "warning" not in printed
    out = io.StringIO()
    print_summary(summary | {"no_answer": no_answer}, Console(file=out, width=400))
    warning = f"warning: {no_answer} of 18 traces have no answer of the kind that was looked for."
    assert (warning in out.getvalue()) is told


def test_the_answer_kind_finds_and_compares_answers_and_the_manifest_keeps_it(
    config: CollectConfig,
) -> None:
    options = AnswerOptions("number", tolerance=1)
    summary, _ = run(dataclasses.replace(config, answers=options), CollectEngine())
    rows = [row for part in range(5) for row in TraceDirectory(config.out).part(part).to_pylist()]
    # 0 and 1 are equal now, and no number can be compared with the truth of the third question.
    for row in rows:
        answered = row["extracted_answer"] is not None
        assert answered is (row["trace_id"] % 3 != 0)
        known = answered and row["question_id"] != "long"
        assert row["is_correct"] is (True if known else None)
    assert summary["majority_accuracy"] == 2 / 3
    kept = TraceDirectory(config.out).manifest["settings"]
    assert AnswerOptions.from_settings(kept) == options


def test_a_pattern_finds_what_no_box_holds(config: CollectConfig) -> None:
    options = AnswerOptions("regex", "I (give)")
    run(dataclasses.replace(config, answers=options), CollectEngine())
    rows = [row for part in range(5) for row in TraceDirectory(config.out).part(part).to_pylist()]
    found = {row["trace_id"] % 3: row["extracted_answer"] for row in rows}
    assert found == {0: "give", 1: None, 2: None}


def test_an_answer_kind_that_cannot_be_loaded_is_refused_before_the_engine_starts(
    config: CollectConfig,
) -> None:
    engine = CollectEngine()
    with pytest.raises(InputError, match="Expected an answer kind at no_such.module that can be"):
        run(dataclasses.replace(config, answers=AnswerOptions("no_such.module")), engine)
    assert engine.started_with is None


@pytest.mark.parametrize(
    ("questions", "benchmark", "answers", "kind"),
    [
        ("q.jsonl", None, AnswerOptions(), "math"),
        ("gpqa_diamond", None, AnswerOptions(), "choice"),
        ("q.jsonl", "gpqa_diamond", AnswerOptions(), "choice"),
        ("q.jsonl", "gpqa_diamond", AnswerOptions("auto"), "auto"),
        ("aime_2025", None, AnswerOptions(), "math"),
    ],
)
def test_a_benchmark_sets_the_answer_kind_where_none_is_given(
    questions: str, benchmark: str | None, answers: AnswerOptions, kind: str
) -> None:
    for config in (
        CollectConfig("m", questions, "o", benchmark=benchmark, answers=answers),
        EvalConfig(
            model="m",
            questions=questions,
            out="o",
            methods="sc",
            benchmark=benchmark,
            answers=answers,
        ),
    ):
        assert config.answer_options.name == kind
        assert config.result_settings()["answers.kind"] == kind


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_run_goes_on_where_it_stopped(
    config: CollectConfig, error: type[BaseException]
) -> None:
    first = CollectEngine(dies_after=7, error=error)
    with pytest.raises(error):
        run(config, first)
    assert first.closed
    assert TraceDirectory(config.out).num_traces == 7
    assert not TraceDirectory(config.out).complete
    second = CollectEngine()
    _, printed = run(config, second)
    assert_whole(config, len(QUESTIONS))
    assert "18 traces, 7 of them done" in printed
    assert not set(first.yielded) & set(second.yielded)


class StepsFromPart(CollectEngine):
    """Its traces have no step boundary before this part; those after have one each."""

    def __init__(self, part: int) -> None:
        super().__init__()
        self.part = part

    def trace(self, plan: TracePlan) -> Trace:
        trace = super().trace(plan)
        trace.boundary_positions = [5] if len(self.yielded) > 4 * self.part else []
        trace.hidden_SH = torch.zeros(len(trace.boundary_positions), self.H).bfloat16()
        return trace


def test_a_first_part_without_any_boundary_is_told_once(config: CollectConfig) -> None:
    _, printed = run(config, StepsFromPart(99))
    assert printed.count("no trace of the first part has a step boundary") == 1
    assert "--boundary.kind" in printed
    assert printed.index("first part") < printed.index("Traces:")
    small = dataclasses.replace(config, out=config.out + "-2", part_traces=1000)
    assert run(small, StepsFromPart(99))[1].count("has a step boundary") == 1
    other = dataclasses.replace(config, out=config.out + "-3")
    assert "has a step boundary" not in run(other, StepsFromPart(0))[1]


def test_a_finished_run_needs_no_engine(config: CollectConfig) -> None:
    summary, _ = run(config, CollectEngine())
    again = CollectEngine()
    assert run(config, again)[0] == summary
    assert again.started_with is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_traces": 5}, "num_traces 6"),
        ({"seed": 1}, "seed 0"),
        ({"sampling": Sampling(top_k=5)}, r"sampling\.top_k 20"),
        ({"limit": 1}, "limit None"),
        ({"engine": {"dtype": "float32"}}, r"engine\.dtype None"),
        ({"answers": AnswerOptions("number")}, r"answers\.kind 'math'"),
        ({"boundary": BoundaryOptions("newline")}, "boundary"),
        ({"boundary": BoundaryOptions(think_end="[/THINK]")}, "boundary"),
        ({"chat_template_kwargs": {"role": 1}}, "chat_template_kwargs {}"),
        ({"engine": {"revision": "v2"}}, r"engine\.revision None"),
    ],
)
def test_other_settings_in_the_same_directory_are_refused(
    config: CollectConfig, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(RuntimeError):
        run(config, CollectEngine(dies_after=5))
    with pytest.raises(InputError, match=f"Expected {named} .*the run started in"):
        run(dataclasses.replace(config, **change), CollectEngine())


def test_settings_that_decide_nothing_may_change(config: CollectConfig) -> None:
    with pytest.raises(RuntimeError):
        run(config, CollectEngine(dies_after=5))
    other = dataclasses.replace(
        config, part_traces=7, max_in_flight=3, engine={"max_num_seqs": 8}, grading_workers=2
    )
    run(other, CollectEngine())
    assert_whole(other, len(QUESTIONS))


class PromptingEngine(CollectEngine):
    """Its orders have the prompts of the model's own chat template."""

    def plan(self, question_id, question, n, sampling, seed, system, chat_template_kwargs):
        assert self.started_with is not None
        revision = self.started_with.get("revision")
        tokenizer = load_tokenizer(self.started_with["model"], revision)
        prompt = tuple(chat_prompt(tokenizer, question, system, chat_template_kwargs))
        rest = (n, sampling, seed, system, chat_template_kwargs)
        plans = super().plan(question_id, question, *rest)
        return [dataclasses.replace(plan, prompt_token_ids=prompt) for plan in plans]


def with_template(config: CollectConfig, folder: Path, head: str) -> CollectConfig:
    """Return settings for a copy of the model whose chat template begins with something more."""
    shutil.copytree(config.model, folder, dirs_exist_ok=True)
    template = folder / "chat_template.jinja"
    template.write_text(head + (Path(config.model) / template.name).read_text())
    return dataclasses.replace(config, model=str(folder))


def test_a_question_goes_on_with_its_prompt_on_another_day(
    config: CollectConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_template(config, tmp_path / "dated", "{{- strftime_now('%Y-%m-%d') }}")
    with monkeypatch.context() as patch:
        patch.setattr("data_gen.collect.datetime", Mock(now=lambda: datetime(2001, 2, 3)))
        with pytest.raises(RuntimeError):
            run(config, PromptingEngine(dies_after=7))
    run(config, PromptingEngine())
    assert_whole(config, len(QUESTIONS))
    found = TraceDirectory(config.out)
    assert found.manifest["prompt_date"] == "2001-02-03T00:00:00"
    tokenizer = load_tokenizer(config.model)
    for index in range(found.num_parts):
        for row in found.part(index).to_pylist():
            assert tokenizer.decode(row["prompt_token_ids"]).startswith("2001-02-03<")


def test_a_question_does_not_go_on_with_another_prompt(
    config: CollectConfig, tmp_path: Path
) -> None:
    config = with_template(config, tmp_path / "model", "")
    with pytest.raises(RuntimeError):
        run(config, PromptingEngine(dies_after=7))
    engine = PromptingEngine()
    with_template(config, tmp_path / "changed", "Hi.")
    shutil.copytree(tmp_path / "changed", tmp_path / "model", dirs_exist_ok=True)
    with pytest.raises(InputError, match="the prompt of question .*the model's chat template has"):
        run(config, engine)
    assert engine.closed
    assert engine.yielded == []


def test_arguments_of_the_chat_template_reach_prompts_and_manifest(
    config: CollectConfig, tmp_path: Path
) -> None:
    config = with_template(config, tmp_path / "model", "{{- effort }}")
    config = dataclasses.replace(config, chat_template_kwargs={"effort": "high"})
    run(config, PromptingEngine())
    found = TraceDirectory(config.out)
    assert found.manifest["chat_template_kwargs"] == {"effort": "high"}
    tokenizer = load_tokenizer(config.model)
    for row in found.part(0).to_pylist():
        assert tokenizer.decode(row["prompt_token_ids"]).startswith("high<")


def test_a_system_text_without_a_turn_of_its_own_is_told_once(
    config: CollectConfig, tmp_path: Path
) -> None:
    refusing = "{%- if messages[0].role == 'system' %}{{ raise_exception('No') }}{%- endif %}"
    config = with_template(config, tmp_path / "model", refusing)
    config = dataclasses.replace(config, system="Think.")
    _, printed = run(config, PromptingEngine())
    assert printed.count("the chat template takes no system turn") == 1
    row = TraceDirectory(config.out).part(0).to_pylist()[0]
    text = load_tokenizer(config.model).decode(row["prompt_token_ids"])
    assert text.startswith("<|im_start|>user\nThink.\n\n")


def test_the_revision_of_a_hub_model_is_that_of_its_tokenizer_and_prompts(
    config: CollectConfig, tmp_path: Path
) -> None:
    code = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
from test_collect import *
engine = {{"revision": "v1"}} if sys.argv[1] == "v1" else {{}}
run(CollectConfig("org/name", {config.questions!r}, sys.argv[1], num_traces=1, engine=engine),
    PromptingEngine())
found = TraceDirectory(sys.argv[1])
text = load_tokenizer({config.model!r}).decode(found.part(0).to_pylist()[0]["prompt_token_ids"])
print(text[:3], found.manifest["identity"]["revision"])
"""
    for name, printed in (("v1", "old v1"), ("main", "new None")):
        output = run_beside_two_revisions(tmp_path, config.model, "-c", code, name)
        assert output.splitlines()[-1:] == [printed]


def test_changed_questions_are_noticed(config: CollectConfig) -> None:
    with pytest.raises(RuntimeError):
        run(config, CollectEngine(dies_after=5))
    with Path(config.questions).open("a") as file:
        file.write('{"question": "new", "answer": "1"}\n')
    with pytest.raises(InputError, match="Expected questions_sha256"):
        run(config, CollectEngine())


class NoSteps(CollectEngine):
    """An engine in whose run no verdict is taken in before somebody waits for it."""

    def stream(
        self, plans: Iterable[TracePlan], max_in_flight: int, on_step: Callable[[], None]
    ) -> Iterator[Trace]:
        return super().stream(plans, max_in_flight, lambda: None)


@pytest.mark.parametrize(("part_traces", "parts"), [(4, [6]), (2, [6]), (1, [4, 1, 1])])
def test_sampling_waits_for_no_verdict_until_a_fourth_part_is_due(
    config: CollectConfig, part_traces: int, parts: list[int]
) -> None:
    question = {"id": "open", "question": "?", "answer": r"\int_0^1 2t\,dt"}
    Path(config.questions).write_text(json.dumps(question) + "\n")
    run(dataclasses.replace(config, part_traces=part_traces), NoSteps())
    found = TraceDirectory(config.out)
    tables = [found.part(index, ["extracted_answer", "is_correct"]) for index in range(len(parts))]
    assert [len(table) for table in tables] == parts
    for row in pa.concat_tables(tables).to_pylist():
        answer = row["extracted_answer"]
        assert row["is_correct"] is (None if answer is None else answer == "1")


def test_traces_whose_verdicts_are_there_are_written_without_the_others(
    config: CollectConfig,
) -> None:
    questions = [{"id": "open", "question": "?", "answer": r"\int_0^1 2t\,dt"}]
    questions += [{"id": f"q{n}", "question": f"{n}?", "answer": "1"} for n in range(3)]
    lines = "".join(json.dumps(question) + "\n" for question in questions)
    Path(config.questions).write_text(lines)
    engine = NoSteps()
    run(dataclasses.replace(config, part_traces=12), engine)
    found = TraceDirectory(config.out)
    assert set(found.part(0)["question_id"].to_pylist()) == {"q0", "q1", "q2"}
    assert found.num_parts > 1
    assert sorted(found.keys()) == sorted(engine.yielded)
    assert_whole(config, 4)
    for index in range(found.num_parts):
        for row in found.part(index, ["extracted_answer", "is_correct"]).to_pylist():
            answer = row["extracted_answer"]
            assert row["is_correct"] is (None if answer is None else answer == "1")


def test_parts_are_also_written_when_time_has_passed(
    config: CollectConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collection, "PART_SECONDS", 1e-9)
    often = dataclasses.replace(config, part_traces=1000)
    run(often, CollectEngine())
    assert TraceDirectory(often.out).num_parts == 18


def test_without_features_no_states_are_asked_for_or_written(config: CollectConfig) -> None:
    bare = dataclasses.replace(config, features=False)
    engine = CollectEngine()
    summary, _ = run(bare, engine)
    assert engine.started_with is not None
    assert engine.started_with["capture"] is False
    assert summary["feature_rows"] == 0
    assert summary["boundaries_per_trace"] == 7 / 6
    assert list((Path(bare.out) / "features").iterdir()) == []


def test_states_can_be_stored_in_another_type(config: CollectConfig) -> None:
    run(dataclasses.replace(config, feature_dtype="float16"), CollectEngine())
    assert TraceDirectory(config.out).shard(0).dtype == torch.float16


def test_questions_without_answers_are_not_graded(config: CollectConfig) -> None:
    Path(config.questions).write_text('{"question": "1+1"}\n')
    with pytest.raises(InputError, match="Expected an answer"):
        run(config, CollectEngine())
    summary, _ = run(dataclasses.replace(config, no_answers=True), CollectEngine())
    assert summary["accuracy"] is None
    assert summary["majority_accuracy"] is None
    assert summary["ungradable"] == 0
    assert TraceDirectory(config.out).table(["is_correct"])["is_correct"].null_count == N


def test_bad_lines_left_out_are_counted(config: CollectConfig) -> None:
    with Path(config.questions).open("a") as file:
        file.write("{\n")
    summary, printed = run(dataclasses.replace(config, skip_bad_lines=True), CollectEngine())
    assert summary["skipped_lines"] == 1
    assert "Left out 1 rows" in printed


def test_too_little_room_is_found_before_the_engine_starts(
    config: CollectConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**6, 10**6, 10))
    engine = CollectEngine()
    with pytest.raises(InputError, match="of free space .* found 10 B"):
        run(config, engine)
    assert engine.started_with is None


def test_a_full_disk_is_one_line_and_loses_nothing(
    config: CollectConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("data_gen.traces.writer.write_part", full)
        with pytest.raises(InputError, match="No space left on device.*goes on where it stopped"):
            run(config, CollectEngine())
    run(config, CollectEngine())
    assert_whole(config, len(QUESTIONS))


def test_a_prompt_that_is_too_long_is_found_before_the_engine_starts(
    config: CollectConfig,
) -> None:
    with Path(config.questions).open("a") as file:
        file.write(json.dumps({"id": "deep", "question": "1+" * 300, "answer": "1"}) + "\n")
    engine = CollectEngine()
    with pytest.raises(InputError, match=r"context \(512 tokens\), .* for question deep"):
        run(config, engine)
    assert engine.started_with is None


def test_boundary_options_beside_a_scorer_must_be_its_own(
    config: CollectConfig, tmp_path: Path
) -> None:
    model = made_up_model(tmp_path / "model", CollectEngine.H)
    scorer = made_up_scorer(tmp_path / "scorer.safetensors", model)
    config = dataclasses.replace(config, model=model, scorer=scorer)
    for boundary in (BoundaryOptions("newline"), BoundaryOptions(think_end="[/THINK]")):
        with pytest.raises(InputError, match=r"--boundary\.(kind|think-end) '.*beside a scorer"):
            run(dataclasses.replace(config, boundary=boundary), CollectEngine())
    run(dataclasses.replace(config, boundary=BoundaryOptions("blank_line")), CollectEngine())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_traces": 0}, "--num-traces of at least 1, found 0"),
        ({"grading_workers": 0}, "--grading-workers of at least 1, found 0"),
        ({"steps_per_trace": 0}, "--steps-per-trace of at least 1, found 0"),
        ({"allow_mismatch": ["tokenizer_hash"]}, "--scorer beside --allow-mismatch"),
    ],
)
def test_settings_that_make_no_sense(
    config: CollectConfig, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=f"Expected {message}"):
        dataclasses.replace(config, **change)


def command(*arguments: str, **options: str) -> Finished:
    for name, value in options.items():
        arguments += (f"--{name.replace('_', '-')}", value)
    return run_command(main, *arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_traces": "0"}, "--num-traces of at least 1"),
        ({"model": "/no/such"}, "Expected a model folder or a hub id"),
        ({"questions": "/no/such"}, "Expected a readable questions file"),
        ({"out": "/dev/null/out"}, "Expected a writable output directory"),
        ({"colour": "red"}, "unrecognized arguments: --colour"),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(
    config: CollectConfig, change: dict[str, str], message: str
) -> None:
    options = {"model": config.model, "questions": config.questions, "out": config.out}
    result = command(**(options | change))
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "Starting the engine" not in result.stdout


def test_the_commands_help_and_configuration(config: CollectConfig, tmp_path: Path) -> None:
    text = command("--help").stdout
    assert "Traces N for each question." in text
    assert "default: 64" in text
    (tmp_path / "c.yaml").write_text(f"model: {config.model}\nquestions: q\nout: o\nseed: 7\n")
    printed = command("--config", str(tmp_path / "c.yaml"), "--print-config").stdout
    assert "seed: 7" in printed


@pytest.mark.parametrize("options", [["--replicas", 2], ["--ray-address", "auto"]])
def test_without_ray_several_engines_are_refused_in_one_line(
    config: CollectConfig, monkeypatch: pytest.MonkeyPatch, options: list[Any]
) -> None:
    monkeypatch.setattr("step_infer.replicas.cluster.importlib.util.find_spec", lambda name: None)
    result = run_command(
        main,
        "--model",
        config.model,
        "--questions",
        config.questions,
        "--out",
        config.out,
        *options,
    )
    assert result.returncode == 2
    assert result.stderr == (
        "error: Expected Ray with --replicas or --ray-address, found that it is not installed. "
        "Hint: pip install 'ray>=2.50,<3'.\n"
    )
    assert not Path(config.out).exists()
