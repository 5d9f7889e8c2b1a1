"""What a run measures: metrics.jsonl, TensorBoard, and wall seconds by stage."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from cluster.storage.atomic_file import write_atomically

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event


class MetricsLog:
    """Appends one flat object a step to a JSON-lines file and the same numbers to TensorBoard."""

    def __init__(self, path: Path, tensorboard_dir: Path) -> None:
        # Not tensorboardX, which imports torch; and here because it takes half a second.
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = path.open("a", encoding="utf-8")
        self._writer = EventFileWriter(str(tensorboard_dir))

    def log(self, step: int, metrics: Mapping[str, float], *, stage: str = "") -> None:
        """Write `metrics` (`stage/quantity[_unit]`), flushed. A number that is not finite becomes null: JSON has no NaN."""
        values = {name: float(value) for name, value in metrics.items()}
        head: dict[str, int | str] = {"step": step, "stage": stage} if stage else {"step": step}
        line = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({**head, **line}, allow_nan=False) + "\n")
        self._file.flush()
        self._writer.add_event(_scalars(step, values))

    def last_step(self, stage: str) -> int:
        """Of the lines of a stage so far, also of an earlier process of the run; 0 where there is none."""
        lines = (json.loads(line) for line in self._path.read_text(encoding="utf-8").splitlines())
        return max((line["step"] for line in lines if line.get("stage", "") == stage), default=0)

    def discard(self, is_given_up: Callable[[Mapping[str, Any]], bool], *, from_step: int) -> None:
        """Remove the lines that `is_given_up` says; TensorBoard hides its points from `from_step` on."""
        lines = [line for line in self._path.read_text(encoding="utf-8").splitlines() if not is_given_up(json.loads(line))]
        self._file.close()
        write_atomically(self._path, "".join(f"{line}\n" for line in lines))
        self._file = self._path.open("a", encoding="utf-8")
        self._writer.add_event(_restart(from_step))

    def close(self) -> None:
        """Wait until both are on disk."""
        self._file.close()
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


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
