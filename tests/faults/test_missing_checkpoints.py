"""Checkpoints moved away between two processes of a run: exit 3 and nothing touched; and a run that has none yet goes on."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.fault_table import FaultRow, likeness
from tests.faults.faulty_run import CHECKPOINT_EVERY, FaultyRun, RunStarter


@pytest.mark.timeout(1800)
@pytest.mark.faults
def test_checkpoints_moved_away_are_exit_3_and_nothing_is_touched(
    clean_run: FaultyRun, start_run: RunStarter, measured: Callable[[FaultRow], None], tmp_path: Path
) -> None:
    run = start_run()
    run.wait_for_step(2 * CHECKPOINT_EVERY + 3)
    run.kill()
    num_done = run.num_steps_done
    checkpoints, away = run.path / "checkpoints", tmp_path / "away"
    newest = max(int(folder.name.removeprefix("step-")) for folder in checkpoints.glob("step-*"))
    checkpoints.rename(away)
    before = records(run.path)
    exit_code = run.resume().wait()
    is_untouched = records(run.path) == before and not checkpoints.exists()
    said = run.output
    away.rename(checkpoints)
    is_clean = run.resume().ends_as(clean_run)
    measured(
        FaultRow(
            row="22",
            fault="`checkpoints/` moved away; then put back",
            num_injected=1,
            num_survived=int(is_clean),
            losses=replace(run.losses(clean_run), num_steps_again=num_done - newest),
            measured=f"exit {exit_code}, records {'byte-equal' if is_untouched else 'CHANGED'}; then {likeness(is_clean)}",
            bar="exit 3, byte-equal",
            holds=exit_code == 3 and is_untouched and is_clean,
        )
    )
    assert exit_code == 3, said
    assert "put the folder back" in said
    assert is_untouched
    assert is_clean


@pytest.mark.timeout(1800)
@pytest.mark.faults
def test_a_run_killed_before_its_first_checkpoint_goes_on(
    clean_run: FaultyRun, start_run: RunStarter, measured: Callable[[FaultRow], None]
) -> None:
    run = start_run()
    run.wait_for_step(2)
    run.kill()
    num_done = run.num_steps_done
    has_none = not list((run.path / "checkpoints").glob("step-*"))
    is_clean = run.resume().ends_as(clean_run)
    measured(
        FaultRow(
            row="22",
            fault="SIGKILL before the first checkpoint",
            num_injected=1,
            num_survived=int(is_clean),
            losses=replace(run.losses(clean_run), num_steps_again=num_done),
            measured=f"{num_done} steps done again: {likeness(is_clean)}",
            bar="goes on from step 0",
            holds=is_clean and has_none,
        )
    )
    assert has_none
    assert is_clean


def records(run: Path) -> dict[str, bytes]:
    """Ledger and metrics, byte by byte."""
    files = [run / "metrics.jsonl", *sorted((run / "trajectories").iterdir())]
    return {file.name: file.read_bytes() for file in files}
