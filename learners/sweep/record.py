"""What a sweep remembers: `sweep.json`, each trial with its settings, its state and its value."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cluster.errors import DataError
from cluster.storage.atomic_file import write_atomically
from learners.sweep.space import Point

SWEEP_NAME = "sweep.json"
TrialState = Literal["pending", "running", "completed", "stopped", "failed", "interrupted"]
DONE: tuple[TrialState, ...] = ("completed", "stopped")  # a resumed sweep does not run them again


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run of a sweep. Produced by `SweepRecord`, consumed by tables and pictures."""

    name: str  # of its run directory, inside the sweep's
    settings: Point
    state: TrialState = "pending"  # stopped: by the scheduler
    value: float | None = None  # of the sweep's metric; of a trial that goes on, the newest
    step: int | None = None  # of the newest line with the metric
    seconds: float = 0.0  # over all its processes
    error: str | None = None


class SweepRecord:
    """Owner of `sweep.json`; the file is up to date when a method returns."""

    def __init__(self, directory: Path, *, metric: str, mode: str, trials: Iterable[Trial] = ()) -> None:
        self.directory = directory
        self.metric = metric
        self.mode = mode
        self._trials = {trial.name: trial for trial in trials}

    @classmethod
    def read(cls, directory: Path) -> "SweepRecord":
        """Raises `DataError` where there is none, or it is broken."""
        path = directory / SWEEP_NAME
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            trials = [Trial(**trial) for trial in values["trials"]]
            return cls(directory, metric=values["metric"], mode=values["mode"], trials=trials)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path}: not the record of a sweep: {type(error).__name__}: {error}") from error

    @property
    def trials(self) -> list[Trial]:
        return list(self._trials.values())

    def trial(self, name: str) -> Trial:
        return self._trials[name]

    def add(self, settings: Point) -> Trial:
        trial = Trial(name=f"trial-{len(self._trials) + 1:03d}", settings=settings)
        self._trials[trial.name] = trial
        self.write()
        return trial

    def change(self, name: str, **values: Any) -> Trial:
        """Set fields of a trial."""
        self._trials[name] = replace(self._trials[name], **values)
        self.write()
        return self._trials[name]

    def write(self) -> None:
        values = {"metric": self.metric, "mode": self.mode, "trials": [asdict(trial) for trial in self.trials]}
        write_atomically(self.directory / SWEEP_NAME, json.dumps(values, indent=2, allow_nan=False) + "\n")


def is_sweep(directory: Path) -> bool:
    """Whether a run directory is that of a sweep."""
    return (directory / SWEEP_NAME).is_file()


def best_first(trials: Sequence[Trial], mode: str) -> list[Trial]:
    """Completed trials by their value, then stopped ones by theirs, then all others."""
    sign = -1.0 if mode == "max" else 1.0

    def place(trial: Trial) -> tuple[int, float]:
        if trial.state not in DONE or trial.value is None:
            return len(DONE), 0.0
        return DONE.index(trial.state), sign * trial.value

    return sorted(trials, key=place)


def best_of(record: SweepRecord) -> Trial | None:
    """None where no trial has come to a value."""
    ranked = [trial for trial in best_first(record.trials, record.mode) if trial.state in DONE and trial.value is not None]
    return ranked[0] if ranked else None
