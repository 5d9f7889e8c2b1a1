"""Resuming a run: what is looked at before anything starts."""

import json
import logging
import shutil
from pathlib import Path

import pytest

from cluster.errors import CannotResumeError, RunDirectoryInUseError
from cluster.storage.checkpoint import CheckpointFolder
from cluster.storage.run_directory import RunDirectory, read_summary
from learners.run import commands
from learners.settings.run import PolicyRunConfig, load_run_config

CONFIG = Path(commands.__file__).parents[2] / "configs" / "train" / "tiny.yaml"


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


def contents(run: Path) -> dict[str, bytes]:
    """Ledger, metrics and summary."""
    files = [run / "metrics.jsonl", run / "summary.json", *(run / "trajectories").iterdir()]
    return {str(file): file.read_bytes() for file in files}


def record_steps(run: Path, count: int) -> None:
    for step in range(count):
        (run / "trajectories").mkdir(exist_ok=True)
        (run / "trajectories" / f"step-{step:06d}.jsonl").write_text("{}\n")
    (run / "metrics.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in range(count)))


def test_checkpoints_that_were_moved_away_are_missed_and_nothing_is_touched(
    interrupted_run: Path, started: list[Path], tmp_path: Path
) -> None:
    record_steps(interrupted_run, 3)
    (interrupted_run / "checkpoints").rename(tmp_path / "away")
    before = contents(interrupted_run)
    with pytest.raises(CannotResumeError, match="checkpoints holds no checkpoint.*put the folder back.*--fresh") as caught:
        commands.resume_run(interrupted_run, [], fresh=False)
    assert caught.value.exit_code == 3
    assert contents(interrupted_run) == before
    (tmp_path / "away").rename(interrupted_run / "checkpoints")
    commands.resume_run(interrupted_run, [], fresh=False)
    assert started == [interrupted_run]


def test_a_run_that_was_killed_before_its_first_checkpoint_goes_on(
    interrupted_run: Path, started: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    CheckpointFolder(interrupted_run / "checkpoints").remove()
    record_steps(interrupted_run, 3)
    with caplog.at_level(logging.INFO):
        commands.resume_run(interrupted_run, [], fresh=False)
    assert started == [interrupted_run]
    assert "stopped before its first checkpoint; its 3 steps are done again" in caplog.text


def test_more_steps_than_can_precede_a_first_checkpoint_are_not_dropped(interrupted_run: Path, started: list[Path]) -> None:
    config = load_run_config(CONFIG)
    assert isinstance(config, PolicyRunConfig)
    every = config.checkpoint.every_num_steps
    shutil.rmtree(interrupted_run / "checkpoints")
    (interrupted_run / "written-checkpoints").unlink()  # as an older Rayward leaves it
    record_steps(interrupted_run, 2 * every + 1)
    before = contents(interrupted_run)
    with pytest.raises(CannotResumeError, match=f"records of {2 * every + 1} steps.*--fresh"):
        commands.resume_run(interrupted_run, [], fresh=False)
    assert (started, contents(interrupted_run)) == ([], before)


def test_a_living_run_is_not_resumed(interrupted_run: Path, started: list[Path]) -> None:
    damage(interrupted_run, 5)
    damage(interrupted_run, 10)
    with RunDirectory.open(interrupted_run), pytest.raises(RunDirectoryInUseError):
        commands.resume_run(interrupted_run, [], fresh=False)
    assert started == []
    assert json.loads((interrupted_run / "summary.json").read_text())["state"] == "completed"  # by the living one
