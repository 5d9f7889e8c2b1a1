"""Resuming a run: what is looked at before anything starts."""

import json
import logging
from pathlib import Path

import pytest

from cluster.errors import CannotResumeError, RunDirectoryInUseError
from cluster.storage.checkpoint import CheckpointFolder
from cluster.storage.run_directory import RunDirectory, read_summary
from learners.run import commands
from learners.settings.run import load_run_config

CONFIG = Path(commands.__file__).parents[2] / "configs" / "train" / "ppo_tiny.yaml"


@pytest.fixture
def interrupted_run(tmp_path: Path) -> Path:
    """With checkpoints after steps 5 and 10."""
    config = load_run_config(CONFIG, [f"runs_dir={tmp_path}"])
    run = RunDirectory.create(tmp_path, config.name)
    run.write_config(config.model_dump(mode="json"))
    folder = CheckpointFolder(run.path / "checkpoints")

    def write_files(path: Path) -> None:
        (path / "learner.json").write_text("{}")

    for step in (5, 10):
        folder.write(step, policy_version=step, facts={}, write_files=write_files)
    run.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    return run.path


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The runs that would have been started."""
    runs: list[Path] = []

    def run_training(config: object, *, resumed: RunDirectory) -> Path:
        with resumed:
            runs.append(resumed.path)
        return resumed.path

    monkeypatch.setattr(commands, "run_training", run_training)
    return runs


def damage(run: Path, step: int) -> Path:
    file = run / "checkpoints" / f"step-{step:06d}" / "learner.json"
    file.write_text("[]")
    return file


def test_a_damaged_checkpoint_is_named_before_anything_starts(
    interrupted_run: Path, started: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    file = damage(interrupted_run, 10)
    with caplog.at_level(logging.WARNING):
        commands.resume_run(interrupted_run, [], fresh=False)
    assert str(file) in caplog.text
    assert started == [interrupted_run]


def test_a_run_without_an_intact_checkpoint_stays_as_it_is(interrupted_run: Path, started: list[Path]) -> None:
    files = [damage(interrupted_run, step) for step in (5, 10)]
    with pytest.raises(CannotResumeError, match="--fresh") as caught:
        commands.resume_run(interrupted_run, [], fresh=False)
    assert all(str(file) in str(caught.value) for file in files)
    assert started == []
    assert read_summary(interrupted_run)["state"] == "interrupted"
    commands.resume_run(interrupted_run, [], fresh=True)
    assert started == [interrupted_run]
    assert (interrupted_run / "earlier-1" / "checkpoints").is_dir()


def test_a_living_run_is_not_resumed(interrupted_run: Path, started: list[Path]) -> None:
    damage(interrupted_run, 5)
    damage(interrupted_run, 10)
    with RunDirectory.open(interrupted_run), pytest.raises(RunDirectoryInUseError):
        commands.resume_run(interrupted_run, [], fresh=False)
    assert started == []
    assert json.loads((interrupted_run / "summary.json").read_text())["state"] == "completed"  # by the living one
