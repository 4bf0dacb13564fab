"""The engine tests once more with vLLM's V2 model runner, its default on GPUs, here on the CPU.

The runner is chosen once in a process, so they run in another one (`tests/harness/v2_on_cpu.py`).
"""

import os
import re
import subprocess
import sys

import pytest
import torch
import v2_on_cpu
from places import ROOT

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(torch.cuda.is_available(), reason="there the tests themselves run with V2"),
    pytest.mark.skipif(v2_on_cpu.asked_for(), reason="runs with V2 already"),
]

FILES = [
    "tests/step_infer/test_engine_features.py",
    "tests/step_infer/test_speculation_engine.py",
    "tests/step_infer/test_shapes_engine.py",
    "tests/step_infer/test_connector_engine.py",
]


def run_with_v2(*arguments):
    """Run tests of this folder with the V2 runner; return how many passed."""
    environment = {**os.environ, v2_on_cpu.VARIABLE: "1", "VLLM_LOGGING_LEVEL": "INFO"}
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", *arguments],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout[-6000:]
    assert "Using V2 Model Runner" in found.stdout, "the tests show nothing"
    return int(re.findall(r"(\d+) passed", found.stdout)[-1])


def test_scores_are_right_with_the_v2_runner():
    tests = "chunked_prefill or children_of_one_request or min_tokens"
    assert run_with_v2(FILES[0], "-k", tests) == 3


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("file", FILES)
def test_engine_tests_pass_with_the_v2_runner(file):
    assert run_with_v2(file) > 1
