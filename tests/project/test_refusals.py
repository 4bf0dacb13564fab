"""What every refusal in the source says: what was expected, what was found, and a hint that holds.

The texts are read from the source; the tests of each module show the refusals themselves.
"""

import ast
import importlib
import re
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from command_harness import run_command
from places import ROOT

PACKAGES = ("step_infer", "data_gen", "step_eval", "step_train", "benchmarks")
PACKAGES_WITH_HINTS = ("step_infer", "data_gen", "step_eval", "step_train")
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
MODULES = {"python -m data_gen.ledger": "data_gen.ledger.__main__:main"}
OTHERS_WORDS = {
    "{reason.rstrip('.')}. Hint: see {prog} --help.": "jsonargparse says what it wanted and got",
    "{row.error}": "made where the row was read, in the same form",
    "{row.place}: {error} Hint: mend it, or leave out such rows with --skip-bad-lines.": (
        "a place before another refusal"
    ),
    "{path}:{number}: {error}": "a place before another refusal",
    "model {model} is not on this machine": "no refusal but a reason, shown in a report",
    "model {name} is not the one that made the traces any more": "a reason, shown in a report",
}
"""Messages in another form, and why."""
WITHOUT_HINT = {
    "of a row of a file: the place goes before it, and the hint after it": {
        "Expected {config.response_field!r}, found only {names} "
        "(--response-field can name another).",
        "Expected a text or a list of texts under {config.response_field!r}, found {short(text)}.",
        "Expected one right answer for a question, found {found.truth!r:.60} here and "
        "{truth!r:.60} before.",
        "Expected a text under {_or(names)}, found {_found(row, names, 'question')}.",
        "Expected a text or a finite number under {_or(names)}, found {short(answer)}.",
        "Expected a text or a whole number under {_or(names)}, found {short(value)}.",
        "Expected Unicode text under {_or(names)}, found the lone surrogate {found!a}.",
        "Expected an answer under {_or(names)}, found {found}.",
        "Expected a solution with the right answer after '####' or in \\boxed{} under {name!r}, "
        "found {short(text)}.",
        "Expected each id once, found {question.id!r:.60}{here} in {first} too{there}.",
        "Expected at most {MOST_LINE_MIB} Mi characters under {_or(names)}, found {len(value):,}.",
        "Expected at most {self.most_mib} MiB in a line of {self.path}, found more.",
        "Expected at most {self.most_mib} MiB in a line, found more.",
        "Expected {len(columns)} columns (first line), found {len(values)}.",
        "Expected one JSON object a line, found: {error}.",
        "Expected one JSON object a line, found another from column {error.pos + 1} on.",
        "Expected one JSON object a line, found one nested too deep.",
        "Expected a JSON object, found {short(values)}.",
        "Expected UTF-8 text, found: {error}.",
    },
    "a bound that is put together": {
        "Expected step {name} {expected}, found {value!r:.60}.",
        "Expected {name} {bounds.get(name, '>= 1')}, found {value}.",
    },
    "the form to write, or what to leave out, is what was expected": {
        'Expected additional_config={"{CONFIG_KEY}": {"scorer": FILE}} for the step scheduler and '
        "worker, found {additional_config!r:.60}.",
        "Expected JSON or a group name as step option, found {value!r:.60}.",
        "Expected an object as step option, found {value!r:.60}.",
        "Expected a group name as step option, found a blank one.",
        "Expected step option group to be a text, found {self.group!r:.60}.",
        "Expected step option capture in offline requests only, found a text.",
        "Expected an engine without {reason}, which step scoring refuses, found one with it.",
    },
    "one of two options, or an option's bounds, which are what was expected": {
        "Expected each method once in --methods, found {text!r}.",
        "Expected either --length-scale or --mean-tokens, found both.",
        "Expected either --run or --scorer, found {'none of them' if self.run is None else "
        "'both'}.",
        "Expected a --vote that goes by scores or is uniform, found {self.vote!r}: nothing else is "
        "simulated.",
        "Expected costs of at least 0, one of them above it, in --timing, found {text!r}.",
        "Expected --timing as a directory of step-eval or as STEP,ROW,KV,PREFILL[,SCORING] in "
        "seconds, found {text!r}.",
        "Expected --val-fraction and --test-fraction above 0 and below 1 together, found "
        "{val_fraction} and {test_fraction}.",
        "Expected --hidden-size in multiples of 128, found {self.hidden_size}.",
        "Expected --learning-rate above 0 and --weight-decay of at least 0, found "
        "{self.learning_rate} and {self.weight_decay}.",
        "Expected settings out of {', '.join(sorted(_FIELDS))} in variant {name!r}, found "
        "{unknown[0]!r}.",
        "Expected good settings in variant {name!r}, found: {error}",
    },
    "of a call from Python, or of an option that this toolkit itself sends": {
        "Expected step option rank to be a finite number, found {self.rank!r:.60}.",
        "Expected as many scores and confidences as positions ({len(positions)}) in step option "
        "replay, found {len(scores)} and {len(confidences or ())}.",
        "Expected labels and scores [S], found {label_S.shape}, {score_S.shape}.",
        "Expected right and wrong samples, found one class only.",
        "Expected finite scores, found NaN or infinity.",
    },
}
"""Why nothing is left to say, and the messages that it holds for."""


class Message(NamedTuple):
    """A text of the source that tells a user what was refused."""

    place: str
    text: str
    """With `{expression}` where a value is put in."""


def _source(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_source, node.values))
    if not isinstance(node, ast.FormattedValue):
        return f"{{{ast.unparse(node)}}}"
    form = "" if node.format_spec is None else f":{_source(node.format_spec)}"
    conversion = "" if node.conversion < 0 else f"!{chr(node.conversion)}"
    return f"{{{ast.unparse(node.value)}{conversion}{form}}}"


def _messages(path: Path) -> Iterator[Message]:
    """Yield the arguments of `InputError`, and texts that begin as one but are made before it."""
    tree = ast.parse(path.read_text(), str(path))
    nodes = list(ast.walk(tree))
    parts = {id(p) for node in nodes if isinstance(node, ast.JoinedStr) for p in node.values}
    for node in nodes:
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "InputError":
            (message,) = node.args
            parts.add(id(message))
            yield Message(f"{path.relative_to(ROOT)}:{node.lineno}", _source(message))
    for node in nodes:
        if isinstance(node, ast.JoinedStr | ast.Constant) and id(node) not in parts:
            text = _source(node)
            if text.startswith("Expected "):
                yield Message(f"{path.relative_to(ROOT)}:{node.lineno}", text)


MESSAGES = [
    message
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
    for message in _messages(path)
]
OWN = [message for message in MESSAGES if message.text not in OTHERS_WORDS]


def _has_both_parts(text: str) -> bool:
    return bool(re.match(r"Expected \S.*\bfound\b.*\w", text.partition(" Hint: ")[0]))


def _shows_the_value(text: str) -> bool:
    """Say whether no name of something stands where its value belongs.

    What is itself a name, such as a method's, stands in quotes (`!r`); "found name value" has both.
    """
    return not re.search(r"found (an? )?\{(name|field|key|option|setting)\}(?! \{)", text)


def _is_one_sentence_on_one_line(text: str) -> bool:
    # What another library says at the end has a full stop of its own.
    return "\n" not in text and text.endswith((".", ": {reason}", ": {error}", "}"))


CHECKS = [_has_both_parts, _shows_the_value, _is_one_sentence_on_one_line]


def test_all_refusals_are_looked_at() -> None:
    assert len(MESSAGES) > 300
    texts = {message.text for message in MESSAGES}
    assert OTHERS_WORDS.keys() == {text for text in texts if not text.startswith("Expected ")}


@pytest.mark.parametrize("good", CHECKS)
def test_every_refusal_says_what_was_expected_and_what_was_found(
    good: Callable[[str], bool],
) -> None:
    assert not [f"{place}: {text}" for place, text in OWN if not good(text)]


@pytest.mark.parametrize(
    ("good", "text"),
    [
        (_has_both_parts, "Expected --x of at least 1."),
        (_has_both_parts, "Expected --x of at least 1, found."),
        (_has_both_parts, "Expected --x of at least 1. Hint: what was found is kept."),
        (_has_both_parts, "--x is wrong, found {x}."),
        (_shows_the_value, "Expected {_option(name)} of at least 1, found {name}."),
        (_is_one_sentence_on_one_line, "Expected --x of at least 1,\nfound {x}."),
        (_is_one_sentence_on_one_line, "Expected --x of at least 1, found none"),
    ],
)
def test_a_refusal_in_another_form_is_seen(good: Callable[[str], bool], text: str) -> None:
    assert not good(text)


def _forms_without_hint() -> re.Pattern[str]:
    """Return what matches a message whose first part tells all: a bound, a choice, a companion."""
    value = r"\{[^{}]*\}"
    number = rf"(?:\d+|{value})"
    option = rf"--(?:[\w.-]|{value})+"
    setting = r"(?:step|step_eval) (?:option|setting) \w+"
    bound = (
        rf"(?:of at (?:least|most) {number}(?: [a-z]+|, or 0 for none)?|above {number}"
        rf"|from {number} to {number}|in [\[(]{number}, {number}[\])])"
    )
    named = rf"(?:{option}|{setting}|\{{(?:name|option|_option\(name\))\}})"
    shown = r"\{(?:', '\.join\([^{}]*\)|known|kinds|[A-Z]+)\}"  # every choice
    companion = r"(?:beside|with|without) [^{}].*, found .+\."
    found = rf", found (?:{value}|none)\."
    return re.compile(
        rf"Expected (?:{named} {bound}{found}"
        # An argument in Python: what was found is the argument of that name.
        rf"|(?:an? )?(?P<argument>\w+) {bound}, found \{{(?:self\.)?(?P=argument)[^{{}}]*\}}\."
        rf"|[\w .{{}}-]+ out of {shown}{found}"
        rf"|(?:{option}|{setting})(?: and {option}| [A-Z]/[A-Z])? {companion})"
    )


def _says_what_to_do(text: str) -> bool:
    known = set().union(*WITHOUT_HINT.values())
    hint = re.search(r" Hint: \S", text)
    return bool(hint or text in known or _forms_without_hint().fullmatch(text))


def test_every_refusal_says_what_to_do() -> None:
    folders = tuple(f"{package}/" for package in PACKAGES_WITH_HINTS)
    own = [message for message in OWN if message.place.startswith(folders)]
    assert not [f"{place}: {text}" for place, text in own if not _says_what_to_do(text)]


def test_the_list_of_refusals_without_a_hint_holds_no_others() -> None:
    assert not set().union(*WITHOUT_HINT.values()) - {text for _, text in OWN}


@pytest.mark.parametrize(
    "text",
    [
        "Expected --num-traces of at least 1, found {self.num_traces}.",
        "Expected --limit of at least 1 question, found {self.limit}.",
        "Expected {_option(name)} in [{low}, {high}], found {found}.",
        "Expected timeout_s above 0, found {timeout_s}.",
        "Expected a stride of at least 1 token, found {stride}.",
        "Expected a split out of {', '.join(SPLITS)}, found {split!r}.",
        "Expected --scorer beside --allow-mismatch, found none.",
    ],
)
def test_a_bound_a_choice_and_a_companion_need_no_hint(text: str) -> None:
    assert _says_what_to_do(text)


@pytest.mark.parametrize(
    "text",
    [
        "Expected traces in {path}, found none.",
        "Expected --out to be a new directory, found one of the shards, {out}.",
        "Expected traces of at least 2 questions, found {count}.",
        "Expected --x of at least 1, found {x} in {path}.",
        "Expected aggregator out of {', '.join(AGGREGATORS)} in {source}, found {name!r}.",
        "Expected a question out of {path}, found {name!r}.",
        "Expected an engine with confidence, found one without.",
        "Expected traces in {path}, found none. Hint:",
    ],
)
def test_a_refusal_that_does_not_say_what_to_do_is_seen(text: str) -> None:
    assert not _says_what_to_do(text)


@cache
def _options() -> dict[str, set[str]]:
    """Return the options of each command and each subcommand, such as "step-train fit"."""
    options = {}
    for script, target in (SCRIPTS | MODULES).items():
        module, _, function = target.partition(":")
        main = getattr(importlib.import_module(module), function)
        refused = run_command(main, "no-such-command").stderr
        subcommands = re.search(r"subcommand out of ([\w, -]+), found", refused)
        for name in ["", *(subcommands[1].split(", ") if subcommands else [])]:
            text = run_command(main, *name.split(), "--help").stdout
            found = re.findall(r"^\W*(?:-h, )?(--[a-z][\w.-]*)", text, re.MULTILINE)
            options[f"{script} {name}".strip()] = set(found)
    return options


def test_the_options_of_all_commands_are_known() -> None:
    assert all({"--help"} < found for found in _options().values())
    assert "--batch-tokens" in _options()["step-train extract"]
    assert "--drawn.right-share" in _options()["step-eval simulate"]


def test_every_option_that_a_refusal_names_exists() -> None:
    known = set().union(*_options().values())
    named = {
        (place, option)
        for place, text in MESSAGES
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*(?:\.[a-z][\w-]*)*(?![\w{-]|\.\{)", text)
    }
    assert len(named) > 50
    unknown = {(place, option) for place, option in named if option not in known}
    # --engine.NAME is any engine argument of vLLM, and the name does not stand in the help.
    assert not {item for item in unknown if not item[1].startswith("--engine.")}


def test_every_command_that_a_refusal_names_exists_and_takes_the_options_named_with_it() -> None:
    named = [
        (place, *found)
        for place, text in MESSAGES
        for found in re.findall(
            r"(?<![\w/.-])((?:step|scorer)-[a-z-]+)(?: ([a-z][a-z-]*))?(?: (--[a-z][\w.-]*))?", text
        )
    ]
    assert len(named) > 30
    for place, command, word, option in named:
        assert command in SCRIPTS, f"{place} names {command}"
        subcommand = f"{command} {word}"
        assert subcommand in _options() or command != "step-train", f"{place} names {subcommand}"
        if option:
            name = subcommand if subcommand in _options() else command
            assert option.rstrip(".") in _options()[name], f"{place} names {name} {option}"
