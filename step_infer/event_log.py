"""The event log: one JSON line for each scored trace that ends.

    {"time": 1764046000.123, "event": "prune", "request": "3_cmpl-1", "group": "q7", "score": 0.31,
     "steps": 12, "tokens": 431, "kv_use": 0.97, "freed_kv_blocks": 14}

`event` is "prune", "finish" (with `reason`: "stop", "length", …) or "abort" (by the client, or at a
stop string; with `reason` "decided" or "over_budget" where the client gave one). `time` is in
seconds since 1970, `score` the trace score (null before the first step score), `steps` the number
of its finite step scores, `tokens` of generated tokens, `kv_use` the part of the KV cache in use
once the trace has gone, `group` null for a trace of its own; behind a server a NUL and a hash of
the caller follow its name. Of a request's name the first 256 characters stand there. A branch also
has `parent`, the `request` of that one's line, and `inherited`, how many of its `tokens` are its
parent's.

The scheduler only puts a line into a queue; a thread writes it. Where the disk is so slow that the
queue is full, lines are left out and counted. A file that has grown to its limit becomes NAME.old,
in the place of an earlier one, and a new one begins. No vLLM import.
"""

import json
import logging
import os
import queue
import stat
import threading
import time
from pathlib import Path
from typing import Any

from step_infer.errors import InputError
from step_infer.live_traces import LiveTrace

logger = logging.getLogger("vllm.step_infer")

_LOOK_BYTES = 65536
_NAME_CHARACTERS = 256
_CLOSE_S = 10.0

QUEUED_LINES = 10_000
"""Lines that wait to be written at most; about 3 MB."""
MAX_BYTES = 128 * 2**20
"""Size at which a log makes room for a new one; with the one old file it takes twice as much."""

EVENTS = ("prune", "finish", "abort")


def event_log_path(path: Path | str) -> str:
    """Return a log's absolute path, before an engine is started with it.

    Raises:
        InputError: the file cannot be written, or is no event log.
    """
    log = EventLog(os.path.realpath(path))
    log.close()
    return str(log.path)


def _branch(trace: LiveTrace) -> dict[str, Any]:
    return {"parent": (trace.parent or "")[:_NAME_CHARACTERS], "inherited": trace.inherited}


class EventLog:
    """A file that lines are appended to; it never stops the engine."""

    _at_line_start: bool

    def __init__(self, path: Path | str, rank: int = 0) -> None:
        """Open the file, or make it.

        Args:
            path: the file; its folder must be there.
            rank: of this engine among data-parallel ones; those above 0 have files of their own,
                NAME.RANK.SUFFIX.

        Raises:
            InputError: the file cannot be written, or holds something else than events.
        """
        path = Path(path)
        self.path = path if rank == 0 else path.with_suffix(f".{rank}{path.suffix}")
        try:
            if not self._takes_events():
                raise InputError(
                    f"Expected an event log or a new file at {self.path}, found a file that holds "
                    "no event. Hint: choose another file; lines are appended to this one."
                )
            self._file: Any = self._open()
        except OSError as error:
            raise InputError(
                f"Expected a file to write events to at {self.path}, found: {error.strerror}. "
                "Hint: make its folder, or change its permissions."
            ) from error
        self.num_dropped = 0
        """Lines left out because the queue was full."""
        self._lines: queue.Queue[bytes | None] = queue.Queue(QUEUED_LINES)
        self._writer: threading.Thread | None = None

    def write(self, event: str, trace: LiveTrace, kv_use: float, **more: Any) -> None:
        """Have one event appended; the first failure to do so is logged and ends the log."""
        if self._file is None:
            return
        line = {
            "time": round(time.time(), 3),
            "event": event,
            "request": trace.request_id[:_NAME_CHARACTERS],
            "group": trace.group,
            "score": None if trace.score is None else round(trace.score, 4),
            "steps": trace.num_scored,
            "tokens": trace.num_tokens,
            "kv_use": round(kv_use, 4),
            **({} if trace.parent is None else _branch(trace)),
            **more,
        }
        if self._writer is None:
            self._writer = threading.Thread(target=self._write_lines, daemon=True)
            self._writer.start()
        try:
            self._lines.put_nowait(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        except queue.Full:
            if self.num_dropped == 0:
                logger.warning("The event log %s is too slow: lines are left out.", self.path)
            self.num_dropped += 1

    def flush(self) -> None:
        """Wait until every line that was not left out is written."""
        self._lines.join()

    def close(self) -> None:
        """Write what is left, for some seconds at most, and close the file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                self._lines.put(None, timeout=_CLOSE_S)
                writer.join(_CLOSE_S)
            except queue.Full:
                pass
            if writer.is_alive():
                logger.warning("The event log %s is too slow: its last lines are lost.", self.path)
                return
        self._end()
        if self.num_dropped:
            logger.warning("The event log %s lacks %d lines.", self.path, self.num_dropped)
            self.num_dropped = 0

    def _write_lines(self) -> None:
        while True:
            line = self._lines.get()
            try:
                if line is None:
                    return
                if self._file is not None:
                    self._append(line)
            except OSError as error:
                logger.warning("The event log %s ends here: %s", self.path, error)
                self._end()
            finally:
                self._lines.task_done()

    def _append(self, line: bytes) -> None:
        found = os.fstat(self._file.fileno())
        if stat.S_ISREG(found.st_mode):
            here = self.path.exists() and os.path.samestat(found, self.path.stat())
            if not here:  # another server that appends to it has moved it
                self._end()
                self._file = self._open()
            elif found.st_size + len(line) > MAX_BYTES and found.st_size > 0:
                self.path.replace(self.path.with_name(f"{self.path.name}.old"))
                self._end()
                self._file = self._open()
        data = line if self._at_line_start else b"\n" + line
        if self._file.write(data) != len(data):
            raise OSError("only a part of a line was written; is the disk full?")
        self._at_line_start = True

    def _open(self) -> Any:
        # Without a buffer each line is one write, which several servers may append.
        file = self.path.open("ab", buffering=0)
        self._at_line_start = self._ends_with_newline()
        return file

    def _end(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _takes_events(self) -> bool:
        """Return whether the file is new, empty or a log; one of another kind would be spoilt."""
        if not self.path.is_file():
            return True
        with self.path.open("rb") as file:
            begin = file.read(_LOOK_BYTES)
        return not begin.strip() or begin.startswith(b'{"time"') or b'"event":' in begin

    def _ends_with_newline(self) -> bool:
        """Return whether the file is empty or ends with a whole line; after a crash it may not."""
        if not self.path.is_file():
            return True  # a pipe or a device
        with self.path.open("rb") as file:
            if file.seek(0, 2) == 0:
                return True
            file.seek(-1, 2)
            return file.read(1) == b"\n"
