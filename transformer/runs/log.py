"""A run's curves, twice: log.jsonl for programs, TensorBoard's event files for eyes.

A line that cannot be written is said once and left out: it never stops training.
"""

import json
import math
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformer.files import os_reason, parse_json, replace_text
from transformer.runs.console import tell

CLOCK_FIELDS = ("seconds", "steps_per_second")
"""Fields of time: they differ between two equal runs."""


class RunLog:
    """The open log of a run that stands at a step; what was written after that step is taken back."""

    def __init__(self, run: Path, step: int):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self._lines, folder = run / "log.jsonl", run / "tensorboard"
        self._events = folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"  # read in this order
        self._mute: set[Path] = set()
        try:
            cut_log(self._lines, step)
        except OSError as error:
            self._complain(self._lines, error)
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            self._complain(self._events, error)
        start = SessionLog(status=SessionLog.START)  # TensorBoard drops the steps from here on of older files
        self._add_events(Event(file_version="brain.Event:2"), Event(step=step + 1, session_log=start))

    def write(self, kind: str, line: dict[str, Any]) -> None:
        """Add a line; it names its `step`, all else are numbers."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._append(self._lines, (json.dumps({"kind": kind, **line}) + "\n").encode())
        numbers = {f"{kind}/{name}": value for name, value in line.items() if name not in ("step", "seconds")}
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()]
        self._add_events(Event(step=line["step"], summary=Summary(value=values)))

    def sync(self) -> None:
        """Flush to the disk, before a checkpoint that follows from these lines."""
        for path in filter(Path.exists, (self._lines, self._events)):
            try:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            except OSError as error:
                self._complain(path, error)

    def _add_events(self, *events: Any) -> None:
        from io import BytesIO

        from tensorboard.summary.writer.record_writer import RecordWriter

        buffer = BytesIO()
        for event in events:
            event.wall_time = time.time()
            RecordWriter(buffer).write(event.SerializeToString())
        self._append(self._events, buffer.getvalue())

    def _append(self, path: Path, data: bytes) -> None:
        """Add to a file all of it or nothing: half a record would spoil what follows."""
        try:
            with path.open("ab", buffering=0) as file:
                end = file.seek(0, os.SEEK_END)
                try:
                    while data:
                        data = data[file.write(data) :]
                except OSError:
                    with suppress(OSError):
                        file.truncate(end)
                    raise
        except OSError as error:
            self._complain(path, error)

    def _complain(self, path: Path, error: OSError) -> None:
        if path not in self._mute:
            tell(f"\n{path}: cannot be written, {os_reason(error)}; training goes on")
        self._mute.add(path)


def cut_log(path: Path, step: int) -> None:
    """Drop the lines after a step: they are about to be written again."""
    if path.exists():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        kept = [line for line in lines if _step_of(line) <= step]
        if kept != lines:
            replace_text(path, "".join(kept))


def _step_of(line: str) -> float:
    try:
        return float(parse_json(line)["step"]) if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError, OverflowError):  # a line cut by a crash, or a hostile one
        return math.inf
