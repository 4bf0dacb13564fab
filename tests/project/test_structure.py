"""Where things stand: floors, circles, and names in texts that must lead somewhere."""

import ast
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from places import ROOT

PACKAGES = ("step_infer", "data_gen", "step_eval", "step_train")
"""Lowest first; imports only go down."""

INSIDE = {
    "step_infer": (
        ("errors", "wire", "policy", "draft_rows"),
        ("storage", "cli", "counters"),
        ("scorer",),
        ("settings", "compat"),
        ("live_traces", "gpu_scorer"),
        ("event_log", "replies", "row_scorer"),
        ("client", "scheduler", "worker", "stat_logger"),
        ("server", "replicas"),
        ("doctor",),
    ),
    "step_train": (
        ("data",),
        ("run_directory",),
        ("trainer",),
        ("extract",),
        ("evaluation",),
        ("export",),
        ("fit", "evaluate", "demo_model"),
        ("commands",),
    ),
}
"""The floors of two packages, lowest first; what shares a floor knows nothing of each other."""

SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}


def imports(module: str) -> Iterator[str]:
    """Yield our modules that a module imports: at its top, in functions, for its types."""
    for node in ast.walk(ast.parse(SOURCES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in SOURCES)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in SOURCES or node.module in SOURCES:
                    yield inner if inner in SOURCES else str(node.module)


IMPORTS = {module: set(imports(module)) - {module} for module in SOURCES}


def circle(start: str) -> list[str]:
    """Return a way from a module back to itself, none if there is none."""
    before: dict[str, str] = {}
    todo = [start]
    for module in todo:
        for other in sorted(IMPORTS[module]):
            if other == start:
                way = [start, module]
                while way[-1] != start:
                    way.append(before[way[-1]])
                return way[::-1]
            if other not in before:
                before[other] = module
                todo.append(other)
    return []


def test_no_module_needs_itself():
    assert {module: way for module in SOURCES if (way := circle(module))} == {}


def test_no_package_imports_one_above_it():
    floor = {package: number for number, package in enumerate(PACKAGES)}
    up = [
        (module, other)
        for module, others in IMPORTS.items()
        for other in others
        if floor[other.partition(".")[0]] > floor[module.partition(".")[0]]
    ]
    assert up == []


@pytest.mark.parametrize("package", INSIDE)
def test_inside_a_package_imports_only_go_down(package):
    floor = {name: number for number, names in enumerate(INSIDE[package]) for name in names}
    found = {path.stem for path in (ROOT / package).iterdir() if (path / "__init__.py").exists()}
    found |= {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__"}
    assert found == set(floor)

    def part(module: str) -> str:
        return module.split(".")[1]

    up = [
        (module, other)
        for module, others in IMPORTS.items()
        for other in others
        if module.startswith(f"{package}.") and other.startswith(f"{package}.")
        if part(module) != part(other) and floor[part(other)] >= floor[part(module)]
    ]
    assert up == []


def test_the_root_of_the_adapter_stays_small():
    files = list((ROOT / "step_infer").glob("*.py"))
    assert len(files) <= 18
    assert sum(len(file.read_text().splitlines()) for file in files) < 3000


def test_nobody_resolves_a_path_that_may_be_a_loop_of_links():
    """Path.resolve ends in a traceback there; `real_path` does not."""
    found = [module for module, path in SOURCES.items() if ".resolve(" in path.read_text()]
    assert found == []


def texts() -> list[Path]:
    """Return the files in which our modules and files are named."""
    kinds = ("*.py", "*.md", "*.sh", "*.toml", "*.yaml", "*.j2")
    places = (*PACKAGES, "tests", "benchmarks", "docs", "recipes", "checkpoints")
    found = [path for place in places for kind in kinds for path in (ROOT / place).rglob(kind)]
    return [*found, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "pyproject.toml"]


def leads_somewhere(name: str) -> bool:
    """Return whether a dotted name is a module, or something that one has or mentions."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        module = ".".join(parts[:count])
        if module in SOURCES:
            source = SOURCES[module].read_text()
            return count == len(parts) or re.search(rf"\b{parts[count]}\b", source) is not None
    return False


NAMED = re.compile(rf"(?<![\w./-])((?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+)")
FILES = re.compile(rf"(?<![\w./-])((?:{'|'.join(PACKAGES)}|tests|docs|benchmarks)/[\w/.-]*\w)")
VLLMS = "tests" + "/v1"
"""Where vLLM keeps its own tests."""
KEYS = {"step_infer.aggregator", "step_infer.source", "step_infer.answer_kind"}
"""Names of metadata in Parquet files, not of modules."""


def test_every_module_and_file_that_a_text_names_is_there():
    lost = set()
    for path in texts():
        text, here = path.read_text(), str(path.relative_to(ROOT))
        names = set(NAMED.findall(text)) - KEYS
        lost |= {(here, name) for name in names if not leads_somewhere(name)}
        files = {name for name in FILES.findall(text) if not name.startswith(VLLMS)}
        lost |= {(here, name) for name in files if not (ROOT / name).exists()}
    assert lost == set()


def test_every_module_that_a_text_runs_can_be_run():
    named = set()
    for path in texts():
        named |= set(re.findall(r'-m"?,?\s+"?((?:step_\w+|data_gen)[\w.]*)', path.read_text()))
    assert len(named) > 3
    for module in named:
        spec = find_spec(module)
        assert spec is not None, module
        if spec.submodule_search_locations is not None:
            assert find_spec(f"{module}.__main__") is not None, module
