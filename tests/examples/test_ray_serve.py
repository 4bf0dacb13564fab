"""examples/ray_serve_voted.py: a voted call is answered by one replica, with all of its traces."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from patience import wait_until
from places import ROOT

from step_eval.recorded.events import read_events

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.engine, pytest.mark.alone, pytest.mark.nightly]

TRACES = 8
START_S = 480


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an environment that has Ray Serve, and sees all that is installed here."""
    folder = tmp_path_factory.mktemp("serve") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=100)
    (home,) = folder.glob("lib/python*/site-packages")
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (home / "libraries.pth").write_text("\n".join(libraries) + "\n")
    install = [
        folder / "bin/python",
        "-m",
        "pip",
        "install",
        "-q",
        f"ray[serve]=={ray.__version__}",
    ]
    done = subprocess.run(install, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"ray[serve] cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    return folder / "bin/python"


@pytest.fixture(scope="module")
def served(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Run the example; yield its address, and the folder of its event log and of Ray's logs."""
    folder = tmp_path_factory.mktemp("served")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"PORT": str(port), "EVENT_LOG": str(folder / "events.jsonl"), "RAY_ADDRESS": "local"}
    # Ray's folder has sockets in it, whose paths must be short.
    place["RAY_TMPDIR"] = tempfile.mkdtemp()
    (folder / "ray").symlink_to(place["RAY_TMPDIR"])
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [python, ROOT / "examples" / "ray_serve_voted.py"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **place},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_S
        # Not before both replicas are there.
        while "is ready at" not in (text := (folder / "log").read_text()):
            if time.monotonic() > deadline or server.poll() is not None:
                pytest.fail(f"Ray Serve did not start:\n{text[-4000:]}")
            time.sleep(1)
        yield f"http://127.0.0.1:{port}", folder
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(60)
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGKILL)
            shutil.rmtree(place["RAY_TMPDIR"], ignore_errors=True)


def ask(address: str, number: int) -> tuple[str, dict[str, Any]]:
    """Return the id that Ray gave to a voted call, and its answer."""
    question = f"{618 + number}+487+934 mod 1000 = ?"
    body = {"model": "voted", "messages": [{"role": "user", "content": question}]}
    body |= {"max_tokens": 200, "step": {"stop_rule": "never"}}
    request = urllib.request.Request(
        f"{address}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as response:
        return response.headers["x-request-id"], json.load(response)


def test_each_call_is_in_one_replica_with_all_of_its_traces(served: tuple[str, Path]) -> None:
    address, folder = served
    with ThreadPoolExecutor(4) as pool:
        answered = dict(pool.map(lambda number: ask(address, number), range(4)))
    for body in answered.values():
        counts = body["step"]["traces"]
        assert counts["finished"] + counts["pruned"] == counts["all"] == TRACES
    log = folder / "events.jsonl"  # written by a thread of its own
    assert wait_until(lambda: log.read_text().count("\n") >= TRACES * len(answered))
    events, _ = read_events([log])
    # A trace is named after its call.
    traces = Counter(
        (call, e["group"]) for e in events for call in answered if call in e["request"]
    )
    assert sorted(call for call, _ in traces) == sorted(answered), "a call is one group"
    assert set(traces.values()) == {TRACES}
    # Each call is one line in the log of one replica.
    line = re.compile(r"LLMServer:\S+ (\w+) (\S+) -- POST /v1/chat/completions 200 ")
    logs = (folder / "ray").glob("ray/session_2*/logs/worker-*.err")
    lines = [found for log in logs for found in line.findall(log.read_text())]
    assert sorted(call for _, call in lines) == sorted(answered)
    assert len({replica for replica, _ in lines}) == 2, "both have answered"
