"""The folder of one run: `runs/<name>/`, owned by one process at a time, all of it plain JSON, YAML and safetensors."""

import itertools
import json
import logging
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from cluster.errors import CannotResumeError, ConfigError, DataError, NotWrittenError, RunInterruptedError
from cluster.storage.atomic_file import cut_torn_line, write_atomically
from cluster.storage.run_lock import LOCK_NAME, RunLock

logger = logging.getLogger(__name__)

CONFIG_NAME = "config.yaml"
SUMMARY_NAME = "summary.json"
METRICS_NAME = "metrics.jsonl"
REWARD_MODEL_FOLDER = "reward_model"
POLICY_CHECKPOINTS, REWARD_MODEL_CHECKPOINTS = "checkpoints", "reward_model_checkpoints"
LANGUAGE_MODEL_FOLDER = "language_model"
RUNS_DIR = Path("runs")  # where a bare name is looked for
FOLDERS = ("tensorboard", "logs")  # of every run; others are made by what fills them
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NEXT_STATES = {
    "running": {"running", "completed", "failed", "interrupted"},
    "failed": {"failed", "running"},  # running again: resumed
    "interrupted": {"interrupted", "running"},
    "completed": {"completed"},
}


class RunDirectory:
    """Owner of a run directory; a context manager that leaves the run completed, failed or interrupted, never running."""

    def __init__(self, path: Path, lock: RunLock) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def create(cls, runs_dir: str | Path, name: str) -> Self:
        """Make and own `runs_dir/name`, or `name-2`, `name-3`, ... where earlier runs have the name.

        Raises `RunDirectoryInUseError` if one of those runs is alive. An earlier run whose process died is marked interrupted.
        """
        if not NAME_PATTERN.fullmatch(name):
            raise ConfigError(f"run name {name!r}: use 1 to 64 letters, digits, '.', '_' or '-', starting with a letter or digit")
        for path in _candidates(runs_dir, name):
            path.mkdir(parents=True, exist_ok=True)
            lock = RunLock(path)
            run = cls(path, lock)
            if _is_unused(path):
                break
            run._mark_dead_run()
            lock.release()
        if path.name != name:
            logger.info("%s holds an earlier run; this one is in %s", Path(runs_dir) / name, path)
        for folder in FOLDERS:
            (path / folder).mkdir()
        run.write_summary({"state": "running", "name": path.name, "started_at": _now()})
        return run

    @classmethod
    def open(cls, path: Path) -> Self:
        """Own an existing run directory again, to go on with it. A dead owner's lock is taken over.

        Lines that the end of the machine or a full disk has torn are cut, and named in the log.
        """
        if not (path / SUMMARY_NAME).is_file():
            raise DataError(f"{path} is not a run directory: it has no {SUMMARY_NAME}")
        run = cls(path, RunLock(path))
        try:
            run._mark_dead_run()
            state = run.read_summary()["state"]
            if "running" not in NEXT_STATES[state]:
                raise CannotResumeError(f"{path} is {state}; there is nothing to resume")
            for file in sorted([*path.glob(METRICS_NAME), *path.glob("trajectories/*.jsonl")]):
                if said := cut_torn_line(file):
                    logger.warning("%s", said)
            run.write_summary({"state": "running", "error": None})
        except BaseException:
            run._lock.release()
            raise
        return run

    def set_aside(self) -> Path:
        """Move what the run has made so far into a folder of its own, `earlier-1`, `earlier-2`, ...; returns that folder."""
        number = 1
        while (aside := self.path / f"earlier-{number}").exists():
            number += 1
        aside.mkdir()
        kept = {LOCK_NAME, CONFIG_NAME, SUMMARY_NAME}
        for entry in list(self.path.iterdir()):
            if entry.name not in kept and not entry.name.startswith("earlier-"):
                entry.rename(aside / entry.name)
        for folder in FOLDERS:
            (self.path / folder).mkdir()
        summary = self.read_summary()
        write_atomically(aside / SUMMARY_NAME, json.dumps(summary, indent=2, allow_nan=False) + "\n")
        fresh = {"state": "running", "name": self.path.name, "started_at": _now()}
        write_atomically(self.path / SUMMARY_NAME, json.dumps(fresh, indent=2, allow_nan=False) + "\n")
        return aside

    @property
    def name(self) -> str:
        return self.path.name

    def write_config(self, values: Mapping[str, Any]) -> None:
        """Write the resolved configuration, complete."""
        write_atomically(self.path / CONFIG_NAME, yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True))

    def write_summary(self, values: Mapping[str, Any]) -> None:
        """Set these top-level keys of summary.json and keep the others."""
        before = read_summary(self.path) if (self.path / SUMMARY_NAME).exists() else {"state": "running"}
        after = {**before, **values}
        if after["state"] not in NEXT_STATES[before["state"]]:
            raise ValueError(f"a {before['state']} run cannot become {after['state']!r}")
        write_atomically(self.path / SUMMARY_NAME, json.dumps(after, indent=2, allow_nan=False) + "\n")

    def read_summary(self) -> dict[str, Any]:
        return read_summary(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if self.read_summary()["state"] == "running":
                self.write_summary({**_outcome(error), "ended_at": _now()})
        except NotWrittenError as not_written:
            if error is None:
                raise
            logger.warning("%s", not_written)  # and what ended the run is raised
        finally:
            self._lock.release()

    def mark_interrupted(self) -> None:
        """For an end that leaves no `with` behind it: the summary says so, and the lock is a dead owner's."""
        if self.read_summary()["state"] == "running":
            self.write_summary({"state": "interrupted", "error": "ended at once, before a clean end", "ended_at": _now()})

    def _mark_dead_run(self) -> None:
        """We hold the lock, so a state `running` on disk is that of a process that died."""
        if (self.path / SUMMARY_NAME).is_file() and self.read_summary()["state"] == "running":
            self.write_summary({"state": "interrupted", "error": "the process died without a word"})


def check_not_in_use(runs_dir: str | Path, name: str) -> None:
    """Raise `RunDirectoryInUseError` where `RunDirectory.create` would: before anything slow is imported. Takes nothing."""
    for path in itertools.takewhile(Path.is_dir, _candidates(runs_dir, name)):
        RunLock(path).release()


def find_run(run: Path) -> Path:
    """A run directory by its path, or by its bare name under runs/."""
    candidates = [run, RUNS_DIR / run] if len(run.parts) == 1 and not run.is_absolute() else [run]
    for folder in candidates:
        if (folder / SUMMARY_NAME).is_file():
            return folder
    looked = " or ".join(str(folder) for folder in candidates)
    raise DataError(f"{looked} is not a run directory: it has no {SUMMARY_NAME}; `rayward runs` lists what there is")


def read_summary(path: Path) -> dict[str, Any]:
    """summary.json of the run directory `path`; needs no lock."""
    file = path / SUMMARY_NAME
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DataError(f"{file}: cannot be read as JSON: {error}") from error
    if not isinstance(summary, dict) or summary.get("state") not in NEXT_STATES:
        raise DataError(f"{file}: has no state out of {', '.join(NEXT_STATES)}")
    return summary


def _candidates(runs_dir: str | Path, name: str) -> Iterator[Path]:
    """Where a run of the name may be: name, name-2, name-3, ..."""
    yield Path(runs_dir) / name
    yield from (Path(runs_dir) / f"{name}-{number}" for number in itertools.count(2))


def _is_unused(path: Path) -> bool:
    return {entry.name for entry in path.iterdir()} <= {LOCK_NAME}


def _outcome(error: BaseException | None) -> dict[str, Any]:
    if error is None:
        return {"state": "completed"}
    state = "interrupted" if isinstance(error, KeyboardInterrupt | RunInterruptedError) else "failed"
    return {"state": state, "error": f"{type(error).__name__}: {error}"}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
