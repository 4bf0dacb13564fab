"""A Ray cluster of several nodes on this machine."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster


@contextmanager
def two_nodes() -> Iterator[Cluster]:
    """Start a head without cores and two nodes of one core: room for two replicas.

    What replicas import is found in this folder too.
    """
    watched = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500}
    before = os.environ.get("PYTHONPATH")
    folders = [str(Path(__file__).parent), *([before] if before else [])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(folders))
        head = {"num_cpus": 0, "_system_config": watched, **ports()}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(2):
                add_node(cluster)
            yield cluster
        finally:
            cluster.shutdown()


def add_node(cluster: Cluster) -> None:
    """Add a node of one core."""
    cluster.add_node(num_cpus=1, **ports())


def ports() -> dict[str, int]:
    """Return free ports for a node's agents.

    A node whose agents choose theirs ends itself when they have not said which in 15 s, the time
    of their imports on a busy machine (https://github.com/ray-project/ray/issues/65983).
    """
    names = (
        "metrics_agent_port",
        "metrics_export_port",
        "dashboard_agent_listen_port",
        "runtime_env_agent_port",
    )
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("", 0))) for _ in names]
        free = [server.getsockname()[1] for server in servers]
    return dict(zip(names, free, strict=True))
