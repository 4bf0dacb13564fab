"""A Ray cluster of several nodes on this machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
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
        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": watched}
        )
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        yield cluster
        cluster.shutdown()
