"""What a replica gets of a cluster, and what is refused before one starts."""

import importlib.util
import os
import re
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import pytest
from command_harness import run_command
from places import CHECKPOINT, ROOT

from data_gen.commands import main as collect
from step_eval.command import main as evaluate
from step_infer.errors import InputError
from step_infer.replicas.actors import ActorPool
from step_infer.replicas.cluster import Share, connect, connection, require_ray, share_for
from step_infer.replicas.replica import EngineStarted, OrderTaker, Started

NODE = {"CPU": 8.0}
GPUS = {"CPU": 16.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("replicas", "engine", "nodes", "share"),
    [
        (2, {}, [NODE], Share(4, 0.0)),
        (3, {}, [NODE], Share(2, 0.0)),
        (3, {}, [{"CPU": 3.0}, {"CPU": 3.0}], Share(1, 0.0)),  # 2 cores each fit only twice
        (8, {}, [GPUS], Share(1, 1.0)),
        (4, {"tensor_parallel_size": 2}, [GPUS], Share(1, 2.0)),
        (2, {}, [{"CPU": 4.0, "GPU": 1.0}], Share(1, 0.5)),
        (16, {}, [GPUS], Share(1, 0.5)),
        (80, {}, [GPUS] * 10, Share(1, 1.0)),
    ],
)
def test_each_replica_gets_what_lets_all_find_room(replicas, engine, nodes, share):
    assert share_for(replicas, engine, nodes) == share
    assert share.fits(nodes) >= replicas


def test_replicas_on_one_gpu_share_its_memory():
    assert Share(1, 0.5).engine_args() == {"gpu_memory_utilization": 0.45}
    assert Share(1, 1.0).engine_args() == {}


def starter():
    """Return a class that Ray sends to its workers whole: they cannot import this module."""

    class Starter:
        """A replica without an engine."""

        def __init__(self, log):
            pass

        def run(self):
            yield EngineStarted(os.getpid(), 4096)
            threading.Event().wait()

    return Starter


class WatchedPool(ActorPool):
    """Notes how many replicas are starting once it has begun to start another one."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.starting = []

    def _start(self, member):
        super()._start(member)
        self.starting.append(sum(member.started is None for member in self.members))


@pytest.mark.parametrize(
    ("engine_args", "starting"),
    [({}, [1, 1]), ({"kv_cache_memory_bytes": 2**30}, [1, 2])],
)
def test_engines_that_share_a_gpu_start_one_after_the_other(engine_args, starting):
    ray = pytest.importorskip("ray")
    # Not a cluster that another test has on this machine.
    ray.init("local", num_cpus=2, num_gpus=1, include_dashboard=False, object_store_memory=2**27)
    pool = WatchedPool(starter(), 2, engine_args)
    try:
        pool.start()
        assert pool.starting == starting
        assert len({member.started.pid for member in pool.members}) == 2
    finally:
        pool.close()
        ray.shutdown()


def thread_counter():
    """Return a class that Ray sends to its workers whole."""

    @dataclass(frozen=True)
    class Counted(Started):
        threads: int
        binding: str | None

    class ThreadCounter(OrderTaker):
        """A replica without an engine, which tells what one would go by."""

        def run(self):
            import torch

            binding = os.environ.get("VLLM_CPU_OMP_THREADS_BIND")
            yield Counted(os.getpid(), torch.get_num_threads(), binding)
            time.sleep(600)

    return ThreadCounter


def test_replicas_without_a_gpu_keep_to_the_cores_that_ray_gave_them(monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=2**27)
    pool = ActorPool(thread_counter(), 2, {})
    try:
        pool.start()
        found = {(member.started.threads, member.started.binding) for member in pool.members}
        assert found == {(1, "nobind")}
    finally:
        pool.close()
        ray.shutdown()


@pytest.mark.parametrize(
    ("replicas", "engine", "nodes", "found"),
    [
        (9, {}, [NODE], "9 replicas of 1 ranks, found 1 nodes with 8 cores and 0 GPUs"),
        (
            2,
            {"tensor_parallel_size": 8},
            [GPUS],
            "2 replicas of 8 ranks, found 1 nodes with 16 cores and 8 GPUs",
        ),
    ],
)
def test_more_replicas_than_there_is_room_for_are_refused(replicas, engine, nodes, found):
    with pytest.raises(InputError, match=f"room for {found}. Hint: give a smaller --replicas"):
        share_for(replicas, engine, nodes)


def test_without_ray_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'ray>=2\.50,<3'"):
        require_ray()


@pytest.mark.parametrize("address", ["nonsense", "ray://host:10001", ":6379", "host:port"])
def test_an_address_in_another_form_is_refused(address):
    with pytest.raises(InputError) as caught:
        connect(address)
    assert str(caught.value) == (
        f"Expected --ray-address as HOST:PORT, auto or local, found {address!r}. "
        "Hint: the port is that of the first node, 6379 by default."
    )


@pytest.mark.parametrize("given", ["the address", "auto"])
def test_an_address_where_no_cluster_is_is_refused_at_once(given, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"  # free again below
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError) as caught, connection("auto" if given == "auto" else address):
        pass
    assert str(caught.value) == (
        f"Expected a running Ray cluster at --ray-address {address}, found: [Errno 111] Connection "
        "refused. Hint: start one (docs/guides/scale_out.md shows how), or leave out --ray-address."
    )


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (collect, ["--num-traces", "2"]),
        (evaluate, ["--methods", "sc"]),
    ],
)
def test_a_command_with_a_wrong_address_ends_in_one_line_and_makes_nothing(
    main, arguments, tmp_path
):
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "1+1", "answer": "2"}\n')
    found = run_command(
        main,
        *("--model", CHECKPOINT, "--questions", questions, "--out", tmp_path / "out"),
        *("--system", "", "--ray-address", "nonsense", *arguments),
    )
    assert found.returncode == 2
    assert found.stderr.startswith("error: Expected --ray-address as HOST:PORT, auto or local")
    assert found.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


SLOW_AGENT = """
import sys
import time

if any(argument.endswith("dashboard/agent.py") for argument in sys.orig_argv):
    time.sleep(60)
"""


@pytest.mark.nightly
def test_a_machine_on_which_ray_does_not_start_in_time_is_told_of_in_one_line(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SLOW_AGENT)  # Ray waits 15 s for its agent
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "1+1", "answer": "2"}\n')
    options = {"--model": CHECKPOINT, "--questions": questions, "--out": tmp_path / "out"}
    options |= {"--num-traces": 2, "--replicas": 1, "--ray-address": "local", "--system": ""}
    found = subprocess.run(
        [
            *(sys.executable, "-m", "data_gen.commands"),
            *(str(part) for pair in options.items() for part in pair),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 2, found.stderr
    assert re.fullmatch(
        r"error: Expected that Ray starts on this machine, found: .* timed out during startup\. .*"
        r"\. Hint: give the command again when the machine has less to do; "
        r"/tmp/ray/session_latest/logs says more\.\n",
        found.stderr,
    )
