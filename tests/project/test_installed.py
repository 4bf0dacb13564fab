"""The package as a user gets it: built, installed beside no checkout, run in an empty folder."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from places import CHECKPOINT, ROOT, SCORER

pytestmark = pytest.mark.nightly

OURS = ("step_infer", "data_gen", "step_eval", "step_train")


def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command without this checkout in its way."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        **options,  # type: ignore[call-overload]
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a source archive, and a wheel out of that archive; return their folder."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("built")
    left_out = shutil.ignore_patterns(
        ".*", "runs", "build", "dist", "tests", "__pycache__", "*.safetensors", "*.egg-info"
    )
    shutil.copytree(ROOT, folder / "tree", ignore=left_out)
    run(sys.executable, "-m", "build", "--no-isolation", "-o", folder, folder / "tree")
    return folder


@pytest.fixture(scope="module")
def environment(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into an environment that has the libraries, but not this checkout."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    (home,) = folder.glob("lib/python*/site-packages")
    # Paths that a .pth file names are searched, but no .pth file in them is read: so no checkout.
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (home / "libraries.pth").write_text("\n".join(libraries) + "\n")
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    run(*pip, "--ignore-installed", "--target", home, wheel)
    return folder


def test_the_source_archive_has_the_documents_and_no_weights(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    wanted = {"README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "Makefile", "mkdocs.yml"}
    wanted |= {str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md")}
    wanted |= {str(p.relative_to(ROOT)) for p in (ROOT / "recipes").iterdir()}
    assert wanted - names == set()
    assert [name for name in names if name.endswith(".safetensors")] == []


def test_the_installed_doctor_finds_the_engine(environment: Path, tmp_path: Path) -> None:
    code = "from step_infer.doctor.command import main; main()"
    python = environment / "bin/python"
    done = run(python, "-c", code, "--live", "false", cwd=tmp_path)
    assert "vllm" in done.stdout.lower()


@pytest.mark.engine
def test_the_installed_client_answers_a_question(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "ask.py").write_text(
        "import step_infer\n"
        "from step_infer import Sampling, StepLLM\n\n"
        'if __name__ == "__main__":\n'
        f'    with StepLLM("{CHECKPOINT}", "{SCORER}", kv_budget_tokens=4000, max_model_len=2400) '
        "as llm:\n"
        '        asked = "430+981+819+156+921+716+635+879+292+418+196+181+756 mod 1000 = ?"\n'
        "        sampling = Sampling(temperature=1, top_p=1, top_k=0)\n"
        '        [result] = llm.generate([asked], 8, sampling, system="", stop_rule="never")\n'
        "    print(vars(step_infer)['__file__'])\n"
        "    print(result.answer, sum(trace.trace_score is not None for trace in result.traces))\n"
    )
    done = run(environment / "bin/python", "ask.py", cwd=tmp_path)
    where, answered = done.stdout.strip().splitlines()[-2:]
    assert where.startswith(str(environment))
    answer, scored = answered.split()
    assert answer.isdigit()
    assert int(scored) == 8


def test_the_wheel_has_our_packages_and_commands_alone(environment: Path) -> None:
    (home,) = environment.glob("lib/python*/site-packages")
    folders = {path.name for path in home.iterdir() if path.is_dir()}
    assert {name for name in folders if not name.endswith(".dist-info")} == {*OURS, "bin"}
    commands = {path.name for path in (home / "bin").iterdir()}
    assert {"step-collect", "step-train", "scorer-export", "step-eval"} <= commands
    assert {"step-doctor", "step-serve"} <= commands
