"""End an engine whose owner was killed.

vLLM runs its engine in a process of its own. When the owner ends by SIGKILL (or the system's memory
killer) that process stays, idle, and keeps the device's memory: the next run could not start.
"""

import subprocess
from collections.abc import Iterable

# Waits for the end of its input, which comes when the owner is gone, however it went.
_SCRIPT = 'read -r _; kill "$@"; sleep 2; kill -9 "$@"'


class EngineGuard:
    """A small shell process that outlives this one for as long as it takes to end the engine's."""

    def __init__(self, pids: Iterable[int]) -> None:
        """Guard processes by their ids; none is fine."""
        ids = [str(pid) for pid in pids]
        self._process: subprocess.Popen[bytes] | None = None
        if ids:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _SCRIPT, "sh", *ids],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # an interrupt from the terminal is not for the guard
            )

    def close(self) -> None:
        """Let the processes be: their owner has ended them."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
