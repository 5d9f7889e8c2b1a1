"""Checkpoints damaged between two processes of a run: found before any step, the newest intact one used, or exit 3."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.faulty_run import FaultyRun, RunStarter


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.timeout(1800)
@pytest.mark.faults
def test_a_damaged_checkpoint_is_passed_over(clean_run: FaultyRun, start_run: RunStarter) -> None:
    run = killed_with_two_checkpoints(start_run)
    newest = sorted((run.path / "checkpoints").glob("step-*"))[-1]
    flip(newest / "learner.safetensors")
    run.resume()
    assert run.wait() == 0, run.output
    assert run.audit() == clean_run.audit()
    assert run.policy() == clean_run.policy()


@pytest.mark.timeout(1800)
@pytest.mark.faults
@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_no_intact_checkpoint_is_exit_3_and_not_a_fresh_start(start_run: RunStarter, damage: Callable[[Path], None]) -> None:
    run = killed_with_two_checkpoints(start_run)
    steps_before = run.num_steps_done
    for folder in (run.path / "checkpoints").glob("step-*"):
        damage(folder / "learner.json")
    assert run.resume().wait() == 3
    assert "learner.json" in run.output
    assert "--fresh" in run.output
    assert run.num_steps_done == steps_before
    assert run.resume("--fresh").wait() == 0
    assert (run.path / "earlier-1" / "checkpoints").is_dir()


def killed_with_two_checkpoints(start_run: RunStarter) -> FaultyRun:
    run = start_run()
    run.wait_for_step(11)  # checkpoints every four steps
    run.kill()
    return run
