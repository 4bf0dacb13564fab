"""The examples do what they say, each as a user runs it."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import CHECKPOINT, ROOT, SCORER

from data_gen.ledger.__main__ import LedgerConfig, write_questions
from step_infer.server.flags import cpu_flags

pytestmark = pytest.mark.engine
EXAMPLES = ROOT / "examples"
# As in an activated environment.
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
}


def run(*command: object, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_vote_without_a_server_names_every_trace_and_the_answer() -> None:
    lines = run(sys.executable, EXAMPLES / "offline_vote.py").splitlines()
    traces = [line for line in lines if re.match(r"trace +\d+: \w+ +\d+ tokens, ", line)]
    assert len(traces) == 16
    assert any("pruned" in line for line in traces)
    answer = re.fullmatch(r"answer (\d+), \d+% of the votes, .* s", lines[-1])
    assert answer is not None
    assert any(line.startswith(f"{answer[1]}: weight ") for line in lines)


@pytest.mark.nightly
def test_the_program_in_the_readme_prints_an_answer(tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "program.py").write_text(program)
    text = run(sys.executable, tmp_path / "program.py")
    assert re.fullmatch(r"\d+ with \d+% of the votes", text.splitlines()[-1])


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the demo model by the flags of vllm_flags.sh."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = ["--host", "127.0.0.1", "--port", port, "--max-model-len", "2400"]
    flags += ["--max-num-seqs", "16", *cpu_flags(str(CHECKPOINT), {"max-model-len": "2400"})]
    server_module = f"{shlex.quote(sys.executable)} -m vllm.entrypoints.openai.api_server --model"
    log = tmp_path_factory.mktemp("served") / "log"
    with log.open("w") as file:
        server = subprocess.Popen(
            [str(word) for word in (EXAMPLES / "vllm_flags.sh", CHECKPOINT, SCORER, *flags)],
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=ENVIRONMENT | {"SERVE": server_module},
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(480):
            if server.poll() is not None:
                pytest.fail(log.read_text()[-4000:])
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5)
                break
            except OSError:
                time.sleep(0.5)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def test_a_client_reads_the_scores_of_plain_vllms_server(address: str) -> None:
    lines = run(sys.executable, EXAMPLES / "serve_client.py", address).splitlines()
    assert len([line for line in lines if re.match(r".+: last step scores 0\.\d\d ", line)]) == 8
    assert re.fullmatch(r"answer \d+, \d+% of the votes", lines[-1])


@pytest.mark.nightly
def test_the_five_stages_leave_a_scorer_and_a_report(tmp_path: Path) -> None:
    for split, count in (("scorer-train", 6), ("test", 2)):
        write_questions(LedgerConfig(tmp_path / f"{split}.jsonl", split, count))
    text = run(
        EXAMPLES / "train_own_scorer.sh",
        CHECKPOINT,
        tmp_path / "scorer-train.jsonl",
        tmp_path / "test.jsonl",
        tmp_path / "out",
        8,
        SAMPLING="--system= --sampling.temperature 1 --sampling.top-p 1 --sampling.top-k 0",
        FIT="--test-fraction 0.4 --max-epochs 2 --baselines none",
        EXPORT="--force",  # six questions prove nothing
        OMP_NUM_THREADS="1",
    )
    assert (tmp_path / "out/scorer.safetensors").is_file()
    assert (tmp_path / "out/eval/report.html").is_file()
    assert text.splitlines()[-1].startswith("Serve it: step-serve ")
