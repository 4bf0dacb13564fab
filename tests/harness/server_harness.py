"""A real step-serve on the CPU, in a process of its own, and an openai client of it."""

import contextlib
import copy
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from patience import PATIENCE_S, wait_until
from places import CHECKPOINT, ROOT, SCORER
from settled_events import read_settled_events

openai = pytest.importorskip("openai")

QUESTION = "618+487+934+246+799+358+171+866+529+402+755+183+690 mod 1000 = ?"
PROMPT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n"
START_S = 240


class Server:
    """A running step-serve and a client of it."""

    def __init__(self, process: subprocess.Popen, port: int, directory: Path) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self.log = directory / "log"
        self.events = directory / "events.jsonl"
        self.client = openai.OpenAI(**self.client_options("none"))

    def client_options(self, key: str) -> dict[str, Any]:
        """Return what a client of the server is made with; it waits long, for connections too."""
        return {"base_url": f"{self.url}/v1", "api_key": key, "max_retries": 0, "timeout": 300}

    def caller(self, key: str) -> "Server":
        """Return the same server as a client with another API key sees it."""
        other = copy.copy(self)
        other.client = self.client.with_options(api_key=key)
        return other

    def wait(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5)
                return
            except OSError:
                time.sleep(0.5)
        pytest.fail("the server did not start:\n" + self.log.read_text()[-4000:])

    def chat(self, step: str | None, **options: Any) -> Any:
        return self.client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": QUESTION}],
            **self.options(step, options),
        )

    def completion(self, step: str | None, prompt: Any = None, **options: Any) -> Any:
        prompt = prompt or PROMPT.format(QUESTION)
        return self.client.completions.create(
            model="demo", prompt=prompt, **self.options(step, options)
        )

    @staticmethod
    def options(step: str | None, options: dict[str, Any]) -> dict[str, Any]:
        extra_body = {"return_token_ids": True}
        if step is not None:
            extra_body["vllm_xargs"] = {"step": step}
        defaults = {"temperature": 1.0, "max_tokens": 400, "seed": 0, "extra_body": extra_body}
        return defaults | options

    def metrics(self) -> list[str]:
        return (
            urllib.request.urlopen(f"{self.url}/metrics", timeout=PATIENCE_S)
            .read()
            .decode()
            .splitlines()
        )

    def step_metrics(self) -> dict[str, float]:
        """Return the adapter's metrics: sums over engines, and the histogram's series."""
        values: dict[str, float] = {}
        for line in self.metrics():
            if line.startswith("step_"):
                series, _, value = line.rpartition(" ")
                for name in {series, series.partition("{")[0]}:
                    values[name] = values.get(name, 0.0) + float(value)
        return values

    def gauge(self, *names: str) -> float:
        """Return the sum of some of vLLM's gauges or counters, over engines, of one moment."""
        series = tuple(f"vllm:{name}{{" for name in names)
        lines = [line for line in self.metrics() if line.startswith(series)]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def answers_at_once(self, *calls: Callable[[], Any], requests: int | None = None) -> list[Any]:
        """Make calls side by side, and return their answers; of so many requests, else one each.

        The engines stand still until all requests have reached them. How quickly clients send does
        not matter then: all begin in the same step.
        """
        requests = requests or len(calls)
        engines = [
            process
            for process in psutil.Process(self.process.pid).children(recursive=True)
            if "VLLM::EngineCore" in " ".join(process.cmdline())
        ]
        assert engines, "the server's engines run in processes of their own"
        start = self.log.stat().st_size

        def arrived() -> bool:
            with self.log.open(errors="replace") as file:
                file.seek(start)
                return file.read().count("Added request") >= requests

        with ThreadPoolExecutor(len(calls)) as pool:
            for engine in engines:
                engine.suspend()
            try:
                answers = [pool.submit(call) for call in calls]
                assert wait_until(arrived)
            finally:
                for engine in engines:
                    engine.resume()
            return [answer.result() for answer in answers]

    def settled_events(self, engines: int = 1) -> list[dict[str, Any]]:
        """Return the events of all traces that have ended."""
        logs = [self.events.with_suffix(f".{n}.jsonl" if n else ".jsonl") for n in range(engines)]
        return read_settled_events(logs, self._mark)[0]

    def _mark(self, group: str, engine: int) -> None:
        header = {"X-data-parallel-rank": str(engine)}
        self.completion(group, "?", max_tokens=2, extra_headers=header)


@contextlib.contextmanager
def serve(directory: Path, kv_blocks: int, *flags: str) -> Iterator[Server]:
    """Start a server with a KV cache of `kv_blocks` blocks, one of which is vLLM's own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "step_infer.server.command",
        str(CHECKPOINT),
        "--scorer",
        str(SCORER),
    ]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "demo"]
    command += ["--max-model-len", "1600", "--num-gpu-blocks-override", str(kv_blocks)]
    command += ["--max-num-seqs", "32", *flags]
    command += ["--event-log", str(directory / "events.jsonl"), "--enable-log-requests"]
    with (directory / "log").open("w") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "VLLM_LOGGING_LEVEL": "INFO",
                # Idle connections stay open: one closed just as the client sends is an error.
                "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600",
            },
            cwd=ROOT,
            start_new_session=True,
        )
    try:
        running = Server(process, port, directory)
        running.wait()
        yield running
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
