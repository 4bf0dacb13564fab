"""What a user of vLLM's own server sees when the adapter cannot start: the reason first."""

import json
import os
import re
import subprocess
import sys

import pytest
from server_harness import CHECKPOINT, SCORER


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
        cwd=CHECKPOINT.parent.parent,
    )
    assert done.returncode != 0
    errors = [line for line in done.stdout.splitlines() if re.search(r"\bERROR\b|Traceback", line)]
    assert f"The step scorer cannot start. Expected a safetensors file at {broken}" in errors[0]
    assert "Hint: export the scorer again" in errors[0]
    assert done.stdout.count("The step scorer cannot start.") == 1
