"""What --help shows: the options that most users set come first, and a name means one thing."""

import re
from collections.abc import Callable

import pytest
from command_harness import run_command

from data_gen import commands as collect_commands
from data_gen.ledger import __main__ as ledger
from step_eval import command as eval_command
from step_infer.doctor import command as doctor
from step_infer.server import command as serve
from step_train import commands as train_commands
from step_train.export import command as export_command

Main = Callable[[], None]
COMMANDS: dict[str, tuple[Main, list[str]]] = {
    "step-collect": (collect_commands.main, ["", *collect_commands.SUBCOMMANDS]),
    "step-train": (train_commands.main, ["", *train_commands.SUBCOMMANDS]),
    "step-eval": (eval_command.main, ["", *eval_command.SUBCOMMANDS]),
    "scorer-export": (export_command.main, [""]),
    "step-doctor": (doctor.main, [""]),
    "step-serve": (serve.main, [""]),
    "python -m data_gen.ledger": (ledger.main, [""]),
}
HELP = [(command, name) for command, (_, names) in COMMANDS.items() for name in names]

GENERAL = {"--help", "--config", "--print-config"}
MOST_FIRST = 14
"""Options that a reader takes in at a glance."""

SEVERAL_MEANINGS = {
    "--aggregator": "fit and scorer-export write it into the card, the others read it from there",
    "--answer-field": "responses made elsewhere have another default than questions",
    "--boundary.kind": "extract can keep the traces' own",
    "--confidence": "step-collect always can, step-eval where an engine scores",
    "--devices": "how many are taken by default",
    "--jobs": "a sweep's need memory each",
    "--kv-budget": "a simulation takes several",
    "--kv-budget-tokens": "a question that is watched has no --kv-budget",
    "--learning-rate": "the scorer's is constant, the demo model's has a schedule",
    "--length-scale": "a simulation takes several",
    "--methods": "a simulation has others",
    "--model": "whose model it is",
    "--num-traces": "a simulation takes several",
    "--out": "what is made",
    "--precision": "the scorer's hidden layers, or all of the demo model",
    "--question-field": "responses made elsewhere have another default than questions",
    "--revision": "extract takes that of the traces, scorer-export one for a published scorer only",
    "--run": "of step-train fit, or of step-eval",
    "--scorer": "what it is for",
    "--seed": "what it decides",
    "--split": "of the demo world, or of a training run",
    "--traces": "with features, with scores, or as sampled",
    "--vote": "merge and report refer to step-eval; a simulation has scores only",
}
"""Options whose help text differs between commands, and why."""


@pytest.fixture(autouse=True)
def _on_a_wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "10000")


def shown_help(command: str, subcommand: str) -> str:
    main, _ = COMMANDS[command]
    result = run_command(main, *subcommand.split(), "--help")
    assert result.returncode == 0
    return result.stdout


def options(text: str) -> dict[str, str]:
    """Return the help text of each option in what --help prints."""
    found = {}
    for block in re.split(r"^  (?=-)", text, flags=re.MULTILINE)[1:]:
        heading = re.match(r"(-h, )?(--[\w.-]+)( \S+)?\s+", block)
        assert heading is not None, block
        found[heading[2]] = block[heading.end() :].split("\n\n")[0].strip()
    return found


@pytest.mark.parametrize(("command", "subcommand"), HELP)
def test_what_most_users_set_comes_first(command: str, subcommand: str) -> None:
    text = shown_help(command, subcommand)
    first, _, advanced = text.partition("\nadvanced:\n")
    assert 3 <= len(options(first)) <= MOST_FIRST
    assert (advanced == "") == (len(options(text)) == len(options(first)))


@pytest.mark.parametrize(("command", "subcommand"), HELP)
def test_each_option_has_a_help_text_with_its_default(command: str, subcommand: str) -> None:
    found = options(shown_help(command, subcommand))
    for name in found.keys() - GENERAL:
        assert re.match(r"\w.*\((required|.*default: .*)", found[name]), f"{name} {found[name]}"


def test_an_option_of_several_commands_means_the_same_in_all() -> None:
    meanings: dict[str, set[str]] = {}
    # The texts of step-serve are worded for groups of requests, not for questions.
    for command, subcommand in HELP:
        if command != "step-serve":
            for name, text in options(shown_help(command, subcommand)).items():
                meaning = re.sub(r"\s*\((required|type).*", "", text, flags=re.DOTALL)
                meanings.setdefault(name, set()).add(meaning)
    assert {name for name, texts in meanings.items() if len(texts) > 1} == set(SEVERAL_MEANINGS)
