"""A process killed while it saves, at any instant: there is always a checkpoint to go on from, the old one or the new one."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from cluster.storage.checkpoint import CheckpointFolder
from tests.faults.fault_table import FaultRow

NUM_KILLS = 20


def test_a_kill_at_any_instant_leaves_a_checkpoint(tmp_path: Path, measured: Callable[[FaultRow], None]) -> None:
    folder = CheckpointFolder(tmp_path)
    write(folder, 0, b"weights")
    context = multiprocessing.get_context("spawn")
    newest = num_survived = 0
    for kill in range(NUM_KILLS):
        writer = context.Process(target=write_for_ever, args=(tmp_path,))
        writer.start()
        while not list(tmp_path.glob("tmp-*")):
            time.sleep(0.001)
        time.sleep(0.003 * kill)  # somewhere within or between writes, which take about 10 ms
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        found = folder.newest_intact()
        num_survived += found is not None
        newest = max(newest, found.manifest.step if found else 0)
        folder.remove_partial()
        assert all(path.name.startswith("step-") for path in tmp_path.iterdir())
    measured(
        FaultRow(
            row="7b",
            fault="SIGKILL in the midst of a save, or between two",
            num_injected=NUM_KILLS,
            num_survived=num_survived,
            measured=f"an intact checkpoint {num_survived} times",
            bar=f"{NUM_KILLS} of {NUM_KILLS}",
            holds=num_survived == NUM_KILLS,
        )
    )
    assert num_survived == NUM_KILLS
    assert newest > 0


def write_for_ever(directory: Path) -> None:
    folder = CheckpointFolder(directory)
    for step in range(1, 1_000_000):
        write(folder, step, os.urandom(1 << 20))
        folder.prune(keep=2)


def write(folder: CheckpointFolder, step: int, content: bytes) -> None:
    folder.write(step, policy_version=step, facts={}, write_files=lambda path: put(path / "learner.safetensors", content))


def put(path: Path, content: bytes) -> None:
    path.write_bytes(content)
