"""What a user of vLLM's own server sees when the adapter cannot start: the reason first."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from places import CHECKPOINT, ROOT, SCORER
from scheduler_harness import make_scheduler
from vllm.v1.core.sched.async_scheduler import AsyncScheduler

from step_infer.errors import InputError
from step_infer.scheduler import StepScheduler
from step_infer.scorer.network import load_scorer, save_scorer
from step_infer.worker import StepWorker

STARTS = "The step scorer cannot start. "


def missing(path):
    path.unlink()


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def not_a_number(path):
    scorer, card = load_scorer(path)
    with torch.no_grad():
        scorer.net[0].weight[3, 5] = torch.nan
    save_scorer(path, scorer, card)


def another_models(path):
    scorer, card = load_scorer(path)
    save_scorer(path, scorer, dataclasses.replace(card, model_config_hash="0" * 64))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (missing, "Expected a scorer file at .*, found none. Hint: "),
        (truncated, "Expected a safetensors file at .*, found: .*truncated"),
        (
            not_a_number,
            "Expected finite weights in .*, found NaN or infinity in net.0.weight",
        ),
        (another_models, "Expected .*model_config_hash.*Hint: "),
    ],
)
def test_the_worker_logs_one_line_before_it_loads_the_model(tmp_path, caplog, spoil, message):
    path = tmp_path / "scorer.safetensors"
    path.write_bytes(SCORER.read_bytes())
    spoil(path)
    for rank in (0, 1):
        worker = object.__new__(StepWorker)
        worker.rank = rank
        worker.vllm_config = make_scheduler(AsyncScheduler, 8, scorer=str(path)).vllm_config
        with pytest.raises(InputError, match=message):
            worker.load_model()
    (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
    assert record.getMessage().startswith(STARTS)
    assert re.search(message, record.getMessage())
    assert "\n" not in record.getMessage()


def test_the_scheduler_logs_one_line_for_a_setting_that_cannot_be(caplog):
    with pytest.raises(InputError):
        make_scheduler(StepScheduler, 8, no_such=1)
    (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
    assert record.getMessage().startswith(f"{STARTS}Expected a step setting out of ")


@pytest.mark.engine
def test_the_first_error_of_plain_vllm_names_the_reason_in_one_line(tmp_path):
    broken = tmp_path / "scorer.safetensors"
    broken.write_bytes(SCORER.read_bytes()[:1000])
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(CHECKPOINT), "--enforce-eager", "--block-size", "32"]
    command += ["--kv-cache-memory-bytes", str(2**28), "--port", "0"]
    command += ["--scheduler-cls", "step_infer.scheduler.StepScheduler"]
    command += ["--worker-cls", "step_infer.worker.StepWorker"]
    command += ["--additional-config", json.dumps({"step": {"scorer": str(broken)}})]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
        env={**os.environ, "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "INFO"},
        cwd=ROOT,
    )
    assert done.returncode != 0
    errors = [line for line in done.stdout.splitlines() if re.search(r"\bERROR\b|Traceback", line)]
    assert f"{STARTS}Expected a safetensors file at {broken}" in errors[0]
    assert "Hint: export the scorer again" in errors[0]
    assert done.stdout.count(STARTS) == 1
