"""How much memory of its own a process takes at most, files that it has mapped left out."""

import threading
from pathlib import Path
from types import TracebackType

_STATUS = Path("/proc/self/status")
_KIBIBYTES_PER_MIB = 1024


def anonymous_mib() -> float | None:
    """Return this process's anonymous resident memory in MiB; None where Linux does not say.

    Pages of memory-mapped files are not in it: the kernel drops those when it needs the room.
    """
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / _KIBIBYTES_PER_MIB
    return None


class PeakMemory:
    """Watches this process's anonymous memory while its block runs."""

    def __init__(self, interval: float = 0.05) -> None:
        """Look every `interval` seconds; what lives shorter may be missed."""
        self.peak_mib: float | None = None
        """The most that was seen, in MiB; None where Linux does not say."""
        self._interval = interval
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._done.wait(self._interval):
            self._look()

    def _look(self) -> None:
        found = anonymous_mib()
        if found is not None:
            self.peak_mib = max(found, self.peak_mib or 0.0)
