"""A disk that fills up under checkpoints: training goes on, the older ones stay whole, and after three failures in a row the run
ends. Under the whole run directory: the run ends at once and names the file. Both resume once there is space."""

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.storage.checkpoint import CheckpointFolder
from tests.faults.fault_table import FaultRow
from tests.faults.faulty_run import CHECKPOINT_EVERY, FaultyRun, RunStarter

DISK_MIB = 64


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, in memory."""
    folder = tmp_path / "small-disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a file system of its own needs the right to mount one: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.timeout(1800)
@pytest.mark.faults
def test_a_full_disk(clean_run: FaultyRun, start_run: RunStarter, measured: Callable[[FaultRow], None], small_disk: Path) -> None:
    run = start_run()
    run.wait_for_output("start done")
    (run.path / "checkpoints").symlink_to(small_disk)  # before the first is written
    run.wait_for_step(CHECKPOINT_EVERY + 1)
    filler = small_disk / "filler"
    fill(filler)
    exit_code = run.wait()
    kept = CheckpointFolder(run.path / "checkpoints").newest_intact()
    leftovers = [path.name for path in small_disk.iterdir() if not path.name.startswith(("step-", "filler"))]
    num_done = run.num_steps_done
    filler.unlink()
    is_clean = run.resume().ends_as(clean_run)
    is_told = "No space left on device" in run.output and "3rd in a row" in run.output
    measured(
        FaultRow(
            row="6",
            fault="disk full from the second checkpoint on, resumed with room",
            num_injected=1,
            num_survived=int(is_clean),
            losses=replace(run.losses(clean_run), num_steps_again=num_done - (kept.manifest.step if kept else 0)),
            measured=f"older checkpoint {'intact' if kept else 'LOST'}, partial folders left: {len(leftovers)}, exit {exit_code}",
            bar="intact, 0, exit 1 after 3 in a row",
            holds=is_clean and is_told and kept is not None and not leftovers and exit_code == 1,
        )
    )
    assert exit_code == 1, run.output
    assert is_told
    assert kept is not None
    assert leftovers == []
    assert is_clean


@pytest.mark.timeout(1800)
@pytest.mark.faults
def test_a_full_disk_under_the_whole_run(
    clean_run: FaultyRun, start_run: RunStarter, measured: Callable[[FaultRow], None], small_disk: Path, tmp_path: Path
) -> None:
    (small_disk / "run").mkdir()
    (tmp_path / "run-0").symlink_to(small_disk / "run")  # where the run puts its directory
    run = start_run()
    run.wait_for_step(CHECKPOINT_EVERY + 2)
    filler = small_disk / "filler"
    fill(filler)
    exit_code = run.wait()
    told = run.output.splitlines()[-1]
    kept = CheckpointFolder(run.path / "checkpoints").newest_intact()
    num_done = run.num_steps_done
    filler.unlink()
    for file in (run.path / "metrics.jsonl", *sorted((run.path / "trajectories").iterdir())[-1:]):
        with file.open("ab") as lines:
            lines.write(b'{"step": 1')  # as where the machine is lost in the midst of a write
    is_clean = run.resume().ends_as(clean_run)
    is_told = "could not be written: No space left on device" in told and "MiB are free" in told
    is_named = run.output.count("the last line is torn") == 2
    measured(
        FaultRow(
            row="23",
            fault="disk full under the whole run directory, last lines torn, resumed with space",
            num_injected=1,
            num_survived=int(is_clean),
            losses=replace(run.losses(clean_run), num_steps_again=num_done - (kept.manifest.step if kept else 0)),
            measured=f"exit {exit_code}, {'one line with path and space' if is_told else 'NOT TOLD'}, torn lines "
            f"{'cut and named' if is_named else 'NOT NAMED'}",
            bar="exit 1, told, resumable",
            holds=exit_code == 1 and is_told and is_named and is_clean,
        )
    )
    assert exit_code == 1, run.output
    assert is_told, told
    assert kept is not None
    assert is_named, run.output
    assert is_clean


def fill(file: Path) -> None:
    """Take all the room there is."""
    with file.open("wb", buffering=0) as handle:
        try:
            while True:
                handle.write(os.urandom(1 << 20))
        except OSError:
            return
