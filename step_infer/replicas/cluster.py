"""The Ray cluster: how it is reached, and what of it each replica gets."""

import importlib.util
import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from step_infer.cli.command import sigterm_as_interrupt
from step_infer.errors import InputError

_RANKS = ("tensor_parallel_size", "pipeline_parallel_size")
# Finished traces wait there while the caller writes; what does not fit goes to Ray's disk.
_LOCAL_STORE_BYTES = 512 * 2**20
_GPU_MEMORY = 0.9
_ANSWER_S = 5.0

AUTO, LOCAL = "auto", "local"


@dataclass(frozen=True)
class Share:
    """What one replica gets of a node."""

    cpus: int
    gpus: float
    """GPUs; below 1 where several replicas share one."""

    def fits(self, nodes: Sequence[dict[str, float]]) -> int:
        """Return how many replicas the nodes have room for.

        Args:
            nodes: the resources of each node, by Ray's names.
        """
        return sum(int(min(self._places(node, "CPU"), self._places(node, "GPU"))) for node in nodes)

    def engine_args(self) -> dict[str, Any]:
        """Return the engine arguments that follow from it."""
        if not 0 < self.gpus < 1:
            return {}
        return {"gpu_memory_utilization": round(_GPU_MEMORY * self.gpus, 3)}

    def starts_alone(self, engine_args: dict[str, Any]) -> bool:
        """Return whether no two of these may start at once.

        vLLM measures while it starts how much memory its model takes of a device, and would count
        what another engine takes there meanwhile. Given the bytes of the KV cache it measures
        nothing.

        Args:
            engine_args: of each replica's engine.
        """
        return 0 < self.gpus < 1 and "kv_cache_memory_bytes" not in engine_args

    def _places(self, node: dict[str, float], resource: str) -> float:
        wanted = self.cpus if resource == "CPU" else self.gpus
        if not wanted:
            return math.inf
        if wanted < 1:
            return int(node.get(resource, 0)) * round(1 / wanted)
        return node.get(resource, 0) // wanted


def require_ray() -> None:
    """See that Ray is installed.

    Raises:
        InputError: it is not.
    """
    if importlib.util.find_spec("ray") is None:
        raise InputError(
            "Expected Ray with --replicas or --ray-address, found that it is not installed. "
            "Hint: pip install 'ray>=2.50,<3'."
        )


def connect(address: str | None) -> bool:
    """Connect this process to a Ray cluster; one that it is connected to already stays.

    Args:
        address: HOST:PORT of a running cluster; "auto" finds the one of this machine (or of
            RAY_ADDRESS); "local" or None starts one in this machine, which ends with this process.

    Returns:
        Whether there was no connection before.

    Raises:
        InputError: there is no cluster at the address, or Ray does not start here.
    """
    require_ray()
    import ray

    if ray.is_initialized():
        return False
    address = address or LOCAL
    if address == AUTO:
        address = os.environ.get("RAY_ADDRESS") or AUTO
    options: dict[str, Any] = {"address": address, "log_to_driver": False}
    if address == LOCAL:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options |= {"include_dashboard": False, "object_store_memory": _LOCAL_STORE_BYTES}
    try:
        if address not in (AUTO, LOCAL):
            _knock(address)
        with _sigterm_kept():
            ray.init(logging_level=logging.ERROR, **options)
    except InputError:
        raise
    except Exception as error:  # a bare one where a node of its own does not start in time
        reason = " ".join(str(error).split()).rstrip(".")
        if address == LOCAL:
            raise InputError(
                f"Expected that Ray starts on this machine, found: {reason}. Hint: give the "
                "command again when the machine has less to do; /tmp/ray/session_latest/logs says "
                "more."
            ) from error
        if address == AUTO and isinstance(error, ConnectionError):
            reason = "none on this machine"
        raise InputError(
            f"Expected a running Ray cluster at --ray-address {address}, found: {reason}. "
            "Hint: start one (docs/guides/scale_out.md shows how), or leave out --ray-address."
        ) from error
    return True


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Keep what SIGTERM does; Ray would have it end the process with status 15."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        on_main = threading.current_thread() is threading.main_thread()
        if on_main and before is not None:  # None: not from Python
            signal.signal(signal.SIGTERM, before)


def _knock(address: str) -> None:
    """See that something listens at HOST:PORT: Ray itself would try for minutes.

    Raises:
        InputError: the address has another form.
        OSError: nothing listens.
    """
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdecimal():
        raise InputError(
            f"Expected --ray-address as HOST:PORT, auto or local, found {address!r}. "
            "Hint: the port is that of the first node, 6379 by default."
        )
    with socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S):
        pass


@contextmanager
def connection(address: str | None) -> Iterator[None]:
    """Be connected to a running cluster in the block; "local" and None start none yet.

    SIGTERM interrupts the block: the engines are in other processes, so no start of theirs is cut.

    Raises:
        InputError: as `connect`, before the block; without Ray too.
        Terminated: there was a SIGTERM.
    """
    require_ray()
    connected = address not in (None, LOCAL) and connect(address)
    try:
        with sigterm_as_interrupt():
            yield
    finally:
        if connected:
            import ray

            ray.shutdown()


def alive_nodes() -> list[dict[str, float]]:
    """Return the resources of each node of the cluster that is alive."""
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def share_for(
    replicas: int, engine_args: dict[str, Any], nodes: Sequence[dict[str, float]]
) -> Share:
    """Return what each replica gets, so that all find room.

    With GPUs, a replica gets as many as it has ranks; replicas of one rank share GPUs where there
    are fewer of these. Without, the cores are divided.

    Args:
        replicas: how many.
        engine_args: of each engine.
        nodes: the resources of each node, by Ray's names.

    Raises:
        InputError: there is no room for so many.
    """
    ranks = math.prod(int(engine_args.get(name, 1)) for name in _RANKS)
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    cores = int(sum(node.get("CPU", 0) for node in nodes))
    if gpus:
        wanted = float(ranks)
        if ranks == 1 and replicas > gpus:
            wanted = 1 / math.ceil(replicas / gpus)
        shares = [Share(1, wanted)]
    else:
        shares = [Share(count, 0.0) for count in range(max(1, cores // replicas), 0, -1)]
    for share in shares:
        if share.fits(nodes) >= replicas:
            return share
    raise InputError(
        f"Expected a Ray cluster with room for {replicas} replicas of {ranks} ranks, found "
        f"{len(nodes)} nodes with {cores} cores and {gpus} GPUs. Hint: give a smaller --replicas, "
        "or add nodes."
    )
