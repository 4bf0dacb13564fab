"""The reference pages, made from the parsers, dataclasses and TypedDicts that they describe.

Nothing of them is kept: `make docs` makes them anew, so that they cannot say what is no more.
"""

import ast
import contextlib
import inspect
import io
import os
import re
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[2]


class Field(NamedTuple):
    """One field of a class, or one argument, as it stands in a table."""

    name: str
    kind: str
    default: str | None
    """None where it must be given."""
    text: str


def pages() -> dict[str, str]:
    """Return the Markdown text of each generated page, by its path in the docs."""
    return {
        "reference/commands.md": commands(),
        "reference/settings.md": settings(),
        "reference/python.md": python(),
        "reference/metrics.md": metrics(),
    }


# --- Commands -------------------------------------------------------------------------------------


def commands() -> str:
    """Return every command and subcommand with its options, out of what --help prints."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    lines = [
        "# Commands",
        "",
        "What `--help` says, on one page. Options that most users set first.",
    ]
    for command, target in scripts.items():
        module = import_module(target.partition(":")[0])
        lines += ["", f"## {command}"]
        default = _help(module.main, command, "")
        lines += ["", *_described(default)]
        for name in getattr(module, "SUBCOMMANDS", ()):
            text = _help(module.main, command, name)
            if text != default:  # step-train alone is step-train fit
                lines += ["", f"### {command} {name}", "", *_described(text)]
    return "\n".join(lines) + "\n"


def _described(text: str) -> Iterator[str]:
    first, _, advanced = text.partition("\nadvanced:\n")
    intro = re.split(r"\n(?:options:|subcommands:|positional arguments:)\n", first)[0].strip()
    usage, _, description = intro.partition("\n\n")
    yield from ("```", " ".join(usage.removeprefix("usage:").split()), "```", "", description)
    for title, part in (("", first), ("Advanced:", advanced)):
        fields = list(_options(part))
        if fields:
            yield from ("", title, "") if title else ("",)
            yield from table(fields, "option")


def _help(main: Any, command: str, subcommand: str) -> str:
    """Return what a command prints for --help, each option's text on one line."""
    with (
        patch.dict(os.environ, {"COLUMNS": "10000", "NO_COLOR": "1"}),
        patch.object(sys, "argv", [command, *subcommand.split(), "--help"]),
        contextlib.redirect_stdout(io.StringIO()) as text,
        contextlib.suppress(SystemExit),
    ):
        main()
    return text.getvalue()


def _options(part: str) -> Iterator[Field]:
    for block in re.split(r"^  (?=-)", part, flags=re.MULTILINE)[1:]:
        heading = re.match(r"(?:-h, )?(--[\w.-]+)(?: (\S+))?\s+", block)
        assert heading is not None, block
        text = " ".join(block[heading.end() :].split("\n\n")[0].split())
        found = re.fullmatch(
            r"(.*?)\s*\((required, )?(?:type: (.*?))?(?:(?:, )?default: (.*))?\)", text
        )
        if found is None:
            yield Field(heading[1], "", "", text)
        else:
            default = None if found[2] else found[4] or ""
            yield Field(heading[1], found[3] or "", default, found[1])


# --- Classes --------------------------------------------------------------------------------------


def settings() -> str:
    """Return what an engine, a request and a voted call can be told."""
    return _page(
        "Settings and request options",
        ("Settings of the engine", "step_infer.settings.StepSettings"),
        ("Request options", "step_infer.settings.RequestOptions"),
        ("Settings of a voted model", "step_infer.server.voted_settings.VotedSettings"),
        ("Options of a voted call", "step_infer.server.voted_settings.VotedOptions"),
        ("Answer kinds", "step_infer.client.kinds.AnswerOptions"),
        ("Boundary rule", "step_infer.scorer.boundary.BoundaryOptions"),
        ("Sampling", "step_infer.client.trace.Sampling"),
    )


def python() -> str:
    """Return the calls and classes for use from Python."""
    from step_infer.client.llm import StepLLM

    lines = ["# Python", "", f"`from step_infer import StepLLM`: {_summary(StepLLM)}"]
    for name in ("__init__", "generate", "plan", "stream"):
        method = getattr(StepLLM, name)
        title = "StepLLM" if name == "__init__" else f"StepLLM.{name}"
        lines += [
            "",
            f"## {title}",
            "",
            _summary(method),
            "",
            *table(_arguments(method), "argument"),
        ]
    rest = _page(
        "",
        ("Result", "step_infer.client.llm.Result"),
        ("Vote", "step_infer.client.answers.Vote"),
        ("Trace", "step_infer.client.trace.Trace"),
        ("Budget", "step_infer.client.deciding.Budget"),
    )
    return "\n".join(lines) + "\n" + rest.partition("\n")[2]


def contracts() -> str:
    """Return the parts of the files' page that follow from code."""
    from data_gen.traces.table import TRACE_SCHEMA

    rows = [f"| `{f.name}` | {f.type} | {'yes' if f.nullable else ''} |" for f in TRACE_SCHEMA]
    head = ["## Columns of the traces table", "", "| column | Arrow type | may be null |"]
    rest = _page(
        "",
        ("Scorer card", "step_infer.scorer.card.ScorerCard"),
        ("Report", "step_infer.wire.Report"),
        ("Report of a choice", "step_infer.wire.ChoiceReport"),
        ("Refusal", "step_infer.wire.Refusal"),
        ("Record of a question", "step_eval.records.QuestionRecord"),
        ("Record of a trace", "step_eval.records.TraceRecord"),
        ("Record of an answer", "step_eval.records.AnswerRecord"),
        ("Series of a question", "step_eval.records.KvSeries"),
    )
    return "\n".join([*head, "|---|---|---|", *rows]) + "\n" + rest.partition("\n")[2]


def metrics() -> str:
    """Return the Prometheus metrics that a server with the adapter shows."""
    from step_infer import stat_logger
    from step_infer.server import voted_metrics

    lines = ["# Metrics", "", "On the OpenAI server's `/metrics`; what they mean in practice:"]
    lines += ["[observability](../guides/observability.md)."]
    for title, found in (
        ("Engine", stat_logger._metrics().values()),
        ("Voted calls", voted_metrics._metrics()),
    ):
        lines += ["", f"## {title}", "", "| metric | kind | labels | |", "|---|---|---|---|"]
        for metric in found:
            name = metric._name + ("_total" if metric._type == "counter" else "")
            labels = ", ".join(f"`{label}`" for label in metric._labelnames)
            lines.append(f"| `{name}` | {metric._type} | {labels} | {metric._documentation} |")
    return "\n".join(lines) + "\n"


def _page(title: str, *parts: tuple[str, str]) -> str:
    lines = [f"# {title}"]
    for heading, path in parts:
        module, _, name = path.rpartition(".")
        owner = getattr(import_module(module), name)
        lines += ["", f"## {heading}", "", f"`{path}`: {_summary(owner)}", ""]
        lines += table(_fields(owner), "field")
    return "\n".join(lines) + "\n"


def _summary(owner: Any) -> str:
    """Return a docstring without its sections of arguments and errors."""
    text = inspect.getdoc(owner) or ""
    return _inline(re.split(r"\n\n(?=\w+:\n)", text)[0])


def _fields(owner: type) -> Iterator[Field]:
    """Yield the fields of a dataclass or TypedDict, with the docstrings under them."""
    body = _class_node(inspect.getsourcefile(owner) or "", owner.__name__).body
    for node, following in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        kind = ast.unparse(node.annotation)
        if kind.startswith("ClassVar"):
            continue
        text = ""
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            text = inspect.cleandoc(str(following.value.value))
        default = None if node.value is None else _default(node.value, owner)
        if kind.startswith("NotRequired["):
            kind, default = kind.removeprefix("NotRequired[").removesuffix("]"), ""
        yield Field(node.target.id, kind.strip("'"), default, _inline(text))


def _default(node: ast.expr, owner: type) -> str:
    """Return a default as its reader writes it: the value of a constant, not its name."""
    text = ast.unparse(node)
    value = None
    if isinstance(node, ast.Name):
        value = vars(import_module(owner.__module__))[node.id]
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        value = getattr(vars(import_module(owner.__module__))[node.value.id], node.attr)
    if isinstance(value, str | int | float):
        return repr(value)
    factory = re.search(r"default_factory=(\w+)", text)
    if factory is not None:
        return {"dict": "{}", "list": "[]"}.get(factory[1], factory[1])
    plain = re.search(r"default=([^,)]+)", text) if text.startswith("field(") else None
    return plain[1] if plain is not None else text


@cache
def _class_node(path: str, name: str) -> ast.ClassDef:
    tree = ast.parse(Path(path).read_text())
    return next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)


def _arguments(method: Any) -> Iterator[Field]:
    """Yield a method's arguments, with what its docstring says of them."""
    text = (inspect.getdoc(method) or "").partition("\nArgs:\n")[2]
    text = textwrap.dedent(re.split(r"\n(?=\w+:\n)", text)[0])
    said = {}
    for block in re.split(r"\n(?=\w)", text.strip()):
        name, _, words = block.partition(":")
        said[name] = _inline(words)
    for name, argument in inspect.signature(method).parameters.items():
        if name != "self":
            star = {argument.VAR_KEYWORD: "**", argument.VAR_POSITIONAL: "*"}
            required = argument.default is argument.empty and argument.kind not in star
            default = "" if argument.default is argument.empty else repr(argument.default)
            if len(default) > 60 or "object at" in default:
                default = "…"
            kind = inspect.formatannotation(argument.annotation).replace("typing.", "")
            kind = re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", kind).strip("'")
            yield Field(
                star.get(argument.kind, "") + name, kind, None if required else default, said[name]
            )


# --- Markdown -------------------------------------------------------------------------------------


def table(fields: Any, heading: str) -> list[str]:
    """Return a Markdown table of fields."""
    lines = [f"| {heading} | type | default | |", "|---|---|---|---|"]
    for field in fields:
        default = "required" if field.default is None else _code(field.default)
        lines.append(
            f"| {_code(field.name)} | {_code(field.kind)} | {default} | {_cell(field.text)} |"
        )
    return lines


def _code(text: str) -> str:
    text = text.replace(" | ", " or ").replace("|", " or ")
    return f"`{text}`" if text else ""


def _cell(text: str) -> str:
    text = text.replace("|", "\\|")
    return re.sub(r"(`[^`]*`)|<", lambda found: found[1] or "&lt;", text)


def _inline(text: str) -> str:
    return " ".join(text.split())
