"""What a run measures: metrics.jsonl, TensorBoard, and wall seconds by stage."""

import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from cluster.errors import DataError
from cluster.storage.atomic_file import append_line, write_atomically, write_errors_explained

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event


class MetricsLog:
    """Appends one flat object a step to a JSON-lines file and the same numbers to TensorBoard.

    Both are on disk when a method returns. Raises `NotWrittenError` where one cannot be, without half a line left behind.
    """

    def __init__(self, path: Path, tensorboard_dir: Path) -> None:
        self._path = path
        self._events = _EventFile(tensorboard_dir)
        with write_errors_explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def log(self, step: int, metrics: Mapping[str, float], *, stage: str = "") -> None:
        """Write `metrics` (`stage/quantity[_unit]`). A number that is not finite becomes null: JSON has no NaN."""
        values = {name: float(value) for name, value in metrics.items()}
        head: dict[str, int | str] = {"step": step, "stage": stage} if stage else {"step": step}
        line = {name: value if math.isfinite(value) else None for name, value in values.items()}
        append_line(self._path, json.dumps({**head, **line}, allow_nan=False))
        self._events.add(_scalars(step, values))

    def last_step(self, stage: str) -> int:
        """Of the lines of a stage so far, also of an earlier process of the run; 0 where there is none."""
        return max((values["step"] for _, values in self._lines() if values.get("stage", "") == stage), default=0)

    def discard(self, is_given_up: Callable[[Mapping[str, Any]], bool], *, from_step: int) -> None:
        """Remove the lines that `is_given_up` says; TensorBoard hides its points from `from_step` on."""
        lines = [line for line, values in self._lines() if not is_given_up(values)]
        write_atomically(self._path, "".join(f"{line}\n" for line in lines))
        self._events.add(_restart(from_step))

    def _lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for number, line in enumerate(self._path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                yield line, json.loads(line)
            except ValueError as error:
                raise DataError(f"{self._path}:{number}: not a line of metrics: {error}; remove the line") from error

    def close(self) -> None:
        """No more is written."""
        self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _EventFile:
    """TensorBoard's file. Written at once: their own writer has a thread, where a full disk shows late, as a traceback."""

    def __init__(self, directory: Path) -> None:
        # Not tensorboardX, which imports torch; and here because it takes half a second.
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        started_s = time.time()
        self._path = directory / f"events.out.tfevents.{started_s:.6f}.{socket.gethostname()}.{os.getpid()}"
        with write_errors_explained(self._path):
            directory.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=0)
        self._records = RecordWriter(self._file)
        self.add(Event(wall_time=started_s, file_version="brain.Event:2"))

    def add(self, event: "Event") -> None:
        with write_errors_explained(self._path):
            self._records.write(event.SerializeToString())

    def close(self) -> None:
        self._file.close()


class StageClock:
    """Adds up wall seconds by stage; a stage entered again goes on counting."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic, earlier_s: Mapping[str, float] | None = None) -> None:
        """`earlier_s`: what an earlier process of the same run has counted."""
        self._now_s = now_s
        self._wall_s: dict[str, float] = dict(earlier_s or {})

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time inside, also when it ends with an exception."""
        started_s = self._now_s()
        try:
            yield
        finally:
            self._wall_s[name] = self._wall_s.get(name, 0.0) + self._now_s() - started_s

    @property
    def wall_s(self) -> dict[str, float]:
        """Stage -> seconds, in order of first use."""
        return dict(self._wall_s)


def _restart(step: int) -> "Event":
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    return Event(wall_time=time.time(), step=step, session_log=SessionLog(status=SessionLog.START))


def _scalars(step: int, values: Mapping[str, float]) -> "Event":
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
    return Event(wall_time=time.time(), step=step, summary=Summary(value=scalars))
