"""Command lines made from configuration classes by jsonargparse.

A configuration class may have two class variables for its command line:

- `MAIN_OPTIONS`: names of the options that --help shows first, in that order (a dot goes into a
  group: "sampling.temperature"); all others stand under "advanced". Without it all are shown first.
- `POSITIONAL`: name of the option whose values may be given without its name.
"""

import argparse
import dataclasses
import itertools
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

from step_infer.errors import InputError

T = TypeVar("T")

Command = Callable[[Sequence[str]], None]
"""A subcommand's body: it takes the arguments after the subcommand's name."""


def run_subcommand(
    prog: str, commands: Mapping[str, Command], default: Command, argv: Sequence[str]
) -> None:
    """Run the subcommand that the first argument names, or `default` where that is an option.

    Raises:
        InputError: there is no such subcommand.
    """
    if not argv or argv[0].startswith("-"):
        default(argv)
    elif argv[0] in commands:
        commands[argv[0]](argv[1:])
    else:
        raise InputError(
            f"Expected options, or a subcommand out of {', '.join(commands)}, found "
            f"{argv[0]!r}. Hint: see {prog} --help."
        )


def option_name(field: str) -> str:
    """Return a field of a configuration class as its option is typed."""
    return "--" + field.replace("_", "-")


def check_at_least(low: int, config: object, *names: str) -> None:
    """Refuse a configuration with a smaller number in one of these fields; None is none.

    Raises:
        InputError: the first such field.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and value < low:
            option = option_name(name)
            raise InputError(f"Expected {option} of at least {low}, found {value}.")


def config_parser(config_class: type, prog: str, description: str) -> Any:
    """Return a parser with an option for each field of a dataclass, --config and --print_config.

    The help text of an option is the field's docstring.
    """
    from jsonargparse import ArgumentParser, set_parsing_settings

    class Parser(ArgumentParser):
        def format_help(self, *args: Any, **kwargs: Any) -> str:
            return _in_hyphens(super().format_help(*args, **kwargs))

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = Parser(prog=prog, description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file with any of these options.")
    parser.add_class_arguments(config_class, as_group=False)
    _arrange_help(parser, config_class)
    return parser


def _arrange_help(parser: Any, config_class: type) -> None:
    """Let --help show the main options first, then all others, in the order of their fields."""
    fields = [field.name for field in dataclasses.fields(config_class)]
    main = [*getattr(config_class, "MAIN_OPTIONS", fields), "config", "print_config", "help"]
    places = {name: place for place, name in enumerate(main)}
    groups = {action.dest.partition(".")[0] for action in parser._actions if "." in action.dest}
    shown = [action for action in parser._actions if action.dest not in groups]
    first = parser.add_argument_group("options")
    advanced = parser.add_argument_group("advanced")

    def place(action: argparse.Action) -> int:
        return places.get(action.dest, places.get(action.dest.partition(".")[0], len(places)))

    for action in sorted(shown, key=place):
        if action.dest == "print_config":
            action.help = "Print all settings as YAML, which --config reads, and stop."
        (first if place(action) < len(places) else advanced)._group_actions.append(action)
    parser._action_groups[:] = [first, advanced]  # only --help goes by them
    parser.usage = _usage(parser, config_class)


def _usage(parser: Any, config_class: type) -> str:
    """Return the command with what it must be given."""
    positional = getattr(config_class, "POSITIONAL", None)
    words = [parser.prog]
    if positional is not None:
        several = get_type_hints(config_class)[positional] == list[str]
        words.append(positional.upper() + (" ..." if several else ""))
    required = [action.dest for action in parser._actions if action.required]
    words += [f"--{name} {name.upper()}" for name in required if name != positional]
    return " ".join([*words, "[options]"])


def parse_config(
    config_class: type[T], argv: Sequence[str] | None, prog: str, description: str
) -> T:
    """Make a configuration from command line arguments (the process's own where None).

    Names may be written with hyphens or underscores, and a switch without a value is true.

    Raises:
        InputError: an option is unknown, missing or has a bad value.
    """
    parser = config_parser(config_class, prog, description)
    types = get_type_hints(config_class)
    arguments = list(sys.argv[1:] if argv is None else argv)
    positional = getattr(config_class, "POSITIONAL", None)
    if positional is not None:
        arguments = _named(arguments, positional, types[positional])
    arguments = _normal(arguments, types)
    _check_config_files(config_class, arguments, prog)
    try:
        found = parser.parse_args(arguments)
    except argparse.ArgumentError as error:
        reason = re.sub(r'Parser key "([\w.]+)": ', r"--\1: ", " ".join(str(error).split()))
        reason = re.sub(r"(?<=are required: ).+", _as_options, _in_hyphens(reason))
        raise InputError(f"{reason.rstrip('.')}. Hint: see {prog} --help.") from error
    values = {}
    for field in dataclasses.fields(config_class):  # type: ignore[arg-type]
        value = found[field.name]
        if dataclasses.is_dataclass(types[field.name]):
            value = types[field.name](**vars(value))
        values[field.name] = value
    return config_class(**values)


def _check_config_files(config_class: type, arguments: Sequence[str], prog: str) -> None:
    """Say what is wrong with a configuration file by its name, which jsonargparse leaves out.

    Raises:
        InputError: a file is empty or no YAML, or sets what is no option.
    """
    import yaml

    given = [a.removeprefix("--config=") for a in arguments if a.startswith("--config=")]
    given += [value for name, value in itertools.pairwise(arguments) if name == "--config"]
    for path in map(Path, given):
        if not path.is_file():
            continue  # jsonargparse says so
        hint = f"{prog} --print-config shows how one is written"
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"Expected YAML in UTF-8 as --config, found {path}: {reason}. Hint: {hint}."
            ) from error
        if not isinstance(found, dict):
            what = "nothing" if found is None else f"a {type(found).__name__}"
            raise InputError(
                f"Expected a YAML file of options and values as --config, found {what} in {path}. "
                f"Hint: {hint}."
            )
        unknown = _unknown_keys(found, config_class)
        if unknown:
            raise InputError(
                f"Expected options of {prog} in --config {path}, found {unknown[0]!r}. "
                f"Hint: {hint}."
            )


def _unknown_keys(found: dict[Any, Any], config_class: type) -> list[str]:
    """Return the keys of a configuration file that are no fields, those of groups with a dot."""
    types = get_type_hints(config_class)
    fields = {field.name for field in dataclasses.fields(config_class)}
    unknown = []
    for key, value in found.items():
        root, _, below = str(key).partition(".")
        if root not in fields:
            unknown.append(str(key))
        elif dataclasses.is_dataclass(types[root]):
            inner = {below: value} if below else value
            if isinstance(inner, dict):
                unknown += [f"{root}.{name}" for name in _unknown_keys(inner, types[root])]
    return unknown


def _named(argv: Sequence[str], option: str, kind: Any) -> list[str]:
    """Turn the arguments before the first option, or behind the last one, into values of `option`.

    argparse has positional arguments too; optional ones that follow an option it refuses.
    """
    given = [place for place, argument in enumerate(argv) if argument.startswith("-")]
    start = given[0] if given else len(argv)
    end = len(argv)
    if given and start == 0:
        end = given[-1] + (1 if "=" in argv[given[-1]] else 2)
    values = [*argv[:start], *argv[end:]]
    if not values:
        return list(argv)
    value = json.dumps(values) if kind == list[str] else " ".join(values)
    return [f"--{option}={value}", *argv[start:end]]


def _in_hyphens(text: str) -> str:
    """Write options and types in jsonargparse's texts as our documents write them."""
    text = re.sub(r", --[\w.]+\+ \S+", "", text)  # one more entry of a list: `_normal`
    text = re.sub(r"--[a-z][\w.]*", lambda option: option[0].replace("_", "-"), text)
    return re.sub(r"<class '(\w+)'>", r"\1", text)


def _as_options(names: re.Match[str]) -> str:
    return ", ".join(f"--{name}".replace("_", "-") for name in names[0].split(", "))


def _normal(argv: Sequence[str], types: dict[str, Any]) -> list[str]:
    """Turn --some-option into --some_option, and a switch without a value into --switch=true.

    A value such as -1/2 is joined to its option: argparse would take it for one more option.

    Raises:
        InputError: a name goes two levels into a free-form option, as in --engine.some.value.
    """
    arguments: list[str] = []
    remaining = list(argv)
    while remaining:
        argument = remaining.pop(0)
        if not argument.startswith("--"):
            arguments.append(argument)
            continue
        name, equals, value = argument[2:].partition("=")
        name = name.replace("-", "_")
        root, _, below = name.partition(".")
        if "." in below and get_origin(types.get(root)) is dict:
            # jsonargparse would keep only the last of several, and as text.
            outer, inner = f"--{root}.{below.split('.')[0]}", below.partition(".")[2]
            raise InputError(
                f"Expected {outer} with all its values as JSON, found --{name}. "
                f"Hint: {outer} '{{\"{inner}\": ...}}'."
            )
        following = remaining[0] if remaining else "--"
        if types.get(name) is bool and not equals and following.startswith("--"):
            equals, value = "=", "true"
        elif not equals and re.match(r"-\d", following):
            equals, value = "=", remaining.pop(0)
        given = value if equals else following
        if types.get(name) == list[str] and not given.startswith("["):
            name += "+"  # one more entry
        arguments.append(f"--{name}{equals}{value}")
    return arguments
