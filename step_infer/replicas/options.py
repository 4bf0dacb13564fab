"""The options of commands that can run on replicas."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from step_infer.cli.options import check_at_least
from step_infer.replicas.cluster import connection

LOGS_FOLDER = "logs"
"""Folder of a run's directory that gets a log of each replica."""


@dataclass(frozen=True, kw_only=True)
class ReplicaOptions:
    """How many engines there are, and where they run; some commands share these options."""

    replicas: int = 1
    """Engines that share the work, as processes of Ray; the traces are the same."""
    ray_address: str | None = None
    """Ray cluster for the replicas: its address as HOST:PORT, auto (the one that runs on this
    machine) or local (one of its own on this machine, the default)."""

    @property
    def uses_ray(self) -> bool:
        """Whether the engines are processes of Ray."""
        return self.replicas > 1 or self.ray_address is not None

    def connected(self) -> AbstractContextManager[None]:
        """Return a block with a connection to the running cluster that is named, if one is.

        Entering it raises `InputError` where there is none, or Ray is wanted and not installed.
        """
        return connection(self.ray_address) if self.uses_ray else nullcontext()

    def _check_replicas(self) -> None:
        check_at_least(1, self, "replicas")
