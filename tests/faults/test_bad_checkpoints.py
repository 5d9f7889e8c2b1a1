"""Checkpoints damaged between two processes of a run: found before any step, the newest intact one used, or exit 3."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.errors import CannotResumeError
from cluster.storage.checkpoint import CheckpointFolder
from tests.faults.fault_table import FaultRow, likeness
from tests.faults.faulty_run import CHECKPOINT_EVERY, FaultyRun, RunStarter


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = (empty, cut, flip, Path.unlink)


@pytest.mark.timeout(1800)
@pytest.mark.faults
def test_a_damaged_checkpoint_is_passed_over(
    clean_run: FaultyRun, start_run: RunStarter, measured: Callable[[FaultRow], None], tmp_path: Path
) -> None:
    run = start_run()
    run.wait_for_step(2 * CHECKPOINT_EVERY + 3)
    run.kill()
    num_injected, num_found = every_damage(run.path / "checkpoints", tmp_path / "copy")
    older, newest = sorted((run.path / "checkpoints").glob("step-*"))
    num_done = run.num_steps_done
    flip(newest / "learner.safetensors")
    is_clean = run.resume().ends_as(clean_run)
    measured(
        FaultRow(
            row="7",
            fault="each file of a checkpoint emptied, cut, flipped, removed",
            num_injected=num_injected,
            num_survived=num_found,
            losses=replace(run.losses(clean_run), num_steps_again=num_done - int(older.name.removeprefix("step-"))),
            measured=f"{num_found} of {num_injected} found; resumed from the one before: {likeness(is_clean)}",
            bar="all found",
            holds=is_clean and num_found == num_injected,
        )
    )
    assert num_found == num_injected
    assert f"{newest / 'learner.safetensors'}" in run.output
    assert is_clean


@pytest.mark.timeout(1800)
@pytest.mark.faults
def test_no_intact_checkpoint_is_exit_3_and_not_a_fresh_start(
    start_run: RunStarter, measured: Callable[[FaultRow], None], clean_run: FaultyRun
) -> None:
    run = start_run()
    run.wait_for_step(2 * CHECKPOINT_EVERY + 3)
    run.kill()
    steps_before = run.num_steps_done
    for folder in (run.path / "checkpoints").glob("step-*"):
        cut(folder / "learner.json")
    exit_code = run.resume().wait()
    said = run.output
    steps_after = run.num_steps_done
    is_clean = run.resume("--fresh").ends_as(clean_run) and (run.path / "earlier-1" / "checkpoints").is_dir()
    measured(
        FaultRow(
            row="7",
            fault="every checkpoint damaged; then `--fresh`",
            num_injected=1,
            num_survived=int(is_clean),
            measured=f"exit {exit_code}, {steps_after - steps_before} steps run",
            bar="exit 3, 0 steps",
            holds=exit_code == 3 and steps_after == steps_before and is_clean,
        )
    )
    assert exit_code == 3
    assert "learner.json" in said
    assert "--fresh" in said
    assert steps_after == steps_before
    assert is_clean


def every_damage(checkpoints: Path, copy: Path) -> tuple[int, int]:
    """(damages done to the newest of two checkpoints of a run, those after which the older one was found; alone, none was)."""
    older, newest = sorted(folder.name for folder in checkpoints.glob("step-*"))
    num_injected = num_found = 0
    for file in sorted(path.name for path in (checkpoints / newest).iterdir()):
        for damage in DAMAGES:
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(checkpoints, copy)
            damage(copy / newest / file)
            found = CheckpointFolder(copy).newest_intact()
            shutil.rmtree(copy / older)
            num_injected += 1
            num_found += found is not None and found.path.name == older and _refuses(copy)
    return num_injected, num_found


def _refuses(checkpoints: Path) -> bool:
    try:
        CheckpointFolder(checkpoints).newest_intact()
    except CannotResumeError:
        return True
    return False
