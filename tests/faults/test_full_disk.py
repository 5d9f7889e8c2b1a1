"""A disk that fills up: training goes on, the older checkpoints stay whole, and after three failures in a row the run ends."""

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


def fill(file: Path) -> None:
    """Take all the room there is."""
    with file.open("wb", buffering=0) as handle:
        try:
            while True:
                handle.write(os.urandom(1 << 20))
        except OSError:
            return
