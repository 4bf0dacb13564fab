"""The command `step-eval`: one clear line and exit 2 for what a user gets wrong."""

import pytest
from command_harness import run_command
from fake_engine import made_up_model, made_up_scorer, write_questions

from step_eval.command import main


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "wide").mkdir()
    model = made_up_model(folder)
    wide = made_up_model(folder / "wide", hidden_size=64)
    (folder / "empty.jsonl").write_text("\n")
    (folder / "bad.jsonl").write_text('{"question": "a", "answer": 1}\n{"question": "b"\n')
    (folder / "no_answer.jsonl").write_text('{"question": "a"}\n')
    (folder / "file").write_text("")
    return {
        "folder": folder,
        "--model": model,
        "--scorer": made_up_scorer(folder / "scorer" / "scorer.safetensors", model),
        "--questions": write_questions(folder / "questions.jsonl", 2),
        "--out": folder / "out",
        "--kv_budget_tokens": 5000,
        "wide scorer": made_up_scorer(folder / "scorer" / "wide.safetensors", wide),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--model": "{folder}/none"}, "Expected a model folder or a hub id"),
        ({"--scorer": "{folder}/none"}, "Expected a scorer file at"),
        ({"--scorer": "{folder}/scorer/wide.safetensors"}, "Expected hidden_size 64 (scorer card"),
        ({"--questions": "{folder}/none"}, "Expected a readable questions file"),
        ({"--questions": "{folder}/empty.jsonl"}, "Expected at least one question in"),
        ({"--questions": "{folder}/bad.jsonl"}, "bad.jsonl:2: Expected one JSON object a line"),
        ({"--questions": "{folder}/no_answer.jsonl"}, "no_answer.jsonl:1: Expected an answer"),
        ({"--num-traces": "0"}, "Expected --num-traces of at least 1, found 0"),
        ({"--out": "{folder}/file/out"}, "Expected a writable output directory"),
        ({"--out": "{folder}/file"}, "Expected a writable output directory"),
        ({"--kv-budget-tokens": "100"}, "Expected a KV budget of at least one longest trace"),
        (
            {"--lengths-from": "{folder}", "--kv_budget_tokens": "null", "--kv-budget": "0.5"},
            "part-*",
        ),
        (
            {"--methods": "sc,magic"},
            "slim-sc, branch, branch-random, single, random, youngest, longest, least-confident, "
            "oracle, all, found",
        ),
        ({"--colour": "red"}, "step-eval --help"),
        ({"--num-traces": "many"}, "--num-traces: "),
    ],
)
def test_bad_input_is_one_line_and_exit_2(inputs, change, message):
    options = {name: value for name, value in inputs.items() if name.startswith("--")}
    for name, value in change.items():
        options.pop(name.replace("-", "_").replace("__", "--", 1), None)
        options[name] = value.format(folder=inputs["folder"])
    found = run_command(main, *(part for pair in options.items() for part in pair))
    lines = found.stderr.strip().splitlines()
    assert found.returncode == 2, found.stderr
    assert lines[-1].startswith("error: ")
    assert message in lines[-1]
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare"], "Expected options, or a subcommand out of "),
        (["report", "{folder}/none"], "no such directory"),
        (["merge", "--out", "{folder}/joined"], "at least one directory of step-eval to merge"),
        (["merge", "{folder}/none", "--out", "{folder}/joined"], "no such directory"),
    ],
)
def test_bad_input_of_the_other_commands(inputs, arguments, message):
    found = run_command(main, *(argument.format(folder=inputs["folder"]) for argument in arguments))
    assert found.returncode == 2, found.stderr
    assert message in found.stderr.strip().splitlines()[-1]


def test_help_names_every_option_with_its_default():
    text = " ".join(run_command(main, "--help").stdout.split())
    assert "Traces N for each question. (type: int, default: 64)" in text
    assert "--kv-budget KV_BUDGET" in text
    assert "step-eval merge" in text


@pytest.mark.parametrize(
    ("arguments", "described"),
    [
        ([], "Compare methods of answering"),
        (["merge"], "Join directories of step-eval into one"),
        (["report"], "Make results.json and report.html"),
        (["events"], "Draw the event log"),
        (["record"], "Keep recorded traces"),
        (["simulate"], "Predict seconds, tokens"),
        (["replay"], "Run recorded traces on real engines"),
    ],
)
def test_the_help_of_a_subcommand_describes_it(arguments, described):
    text = " ".join(run_command(main, *arguments, "--help").stdout.split())
    assert described in text.partition(" options: ")[0]
    assert ("Compare methods" in text) == (not arguments)


def test_the_help_of_simulate_names_all_that_it_reads():
    text = " ".join(run_command(main, "simulate", "--help").stdout.split())
    assert "or the Parquet file of `step-eval record`" in text
