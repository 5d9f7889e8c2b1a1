"""Ray's memory monitor ends a process of a role: a loss like any other, told with the sizes and with what to set.

It picks workers that may be tried again first, those of Ray's own among them, then the one that began last (ray 2.60). So each
role is made the newest, and memory is filled by enough at once for the monitor to come to it; the row tells what else it ended.
Before any rank it comes to the task that runs Ray Train, with which all ranks end.
"""

import re
import time
from collections.abc import Callable

import psutil
import pytest

from tests.faults.fault_table import FaultRow, likeness, seconds
from tests.faults.faulty_run import GENERATOR, RANK, SCORER, FaultyRun, RunStarter, wait_until

ROOM_BYTES = 8 * 2**30  # for the run, beside what is in use before it
JUMP_BYTES = 512 * 2**20  # over the limit: what is picked before the role, and some more
LEFT_BYTES = 2**30  # of the machine, in any case
RECOVERY_S = 60.0
SIZES = (
    r"the machine ran out of memory: [\d.]+ of [\d.]+ GB were in use, the limit is [\d.]+ %; Ray's memory monitor ended"
    r" .*; the largest processes: .*; lower "
)
ENDED = re.compile(r"Selected to kill: .*task name=([\w :]+)")  # in the log of Ray's daemon
TOLD = {
    GENERATOR: rf"generator 0 is lost \({SIZES}generator.kv_cache_gib",
    SCORER: rf"scorer length 0 is lost \({SIZES}batch_size",
    RANK: rf"(rank 0|the process that ran Ray Train was lost): {SIZES}micro_batch_tokens",
}
NAMED = {GENERATOR: "VLLMGenerator", SCORER: "RewardFunctionScorer", RANK: "ray train: learner"}  # by the monitor


@pytest.mark.timeout(1800)
@pytest.mark.faults
@pytest.mark.parametrize("kind", TOLD)
def test_a_role_that_the_memory_monitor_ends_is_replaced(
    clean_run: FaultyRun, start_run: RunStarter, measured: Callable[[FaultRow], None], kind: str
) -> None:
    limit_bytes = limit_of_a_run()
    run = start_run(**monitor(limit_bytes), COLUMNS="2000")  # one line stays one line
    run.wait_for_step(2)
    make_newest(run, kind)
    num_done = run.num_steps_done
    killed_s = fill_memory_until_the_end_of(run.processes(kind)[0], limit_bytes)
    run.wait_for_step(num_done + 1)
    recovery_s = time.monotonic() - killed_s
    is_clean = run.ends_as(clean_run)
    ended = sorted(set(ENDED.findall((run.path / "logs" / "ray" / "raylet.out").read_text())))
    is_told = NAMED[kind] in ended and len(re.findall(TOLD[kind], run.output)) > 0
    measured(
        FaultRow(
            row="21",
            fault=f"Ray's memory monitor kills ray::{NAMED[kind]}",
            num_injected=1,
            num_survived=int(is_clean),
            losses=run.losses(clean_run),
            measured=f"next step after {seconds([recovery_s])}; the monitor ended {', '.join(ended)}; {likeness(is_clean)}",
            bar=f"{RECOVERY_S:.0f} s",
            holds=is_clean and is_told and recovery_s <= RECOVERY_S,
        )
    )
    assert is_clean, run.output
    assert is_told, (ended, run.output)


def limit_of_a_run() -> int:
    """Bytes in use on this machine beyond which the monitor is to kill."""
    memory = psutil.virtual_memory()
    assert memory.available > ROOM_BYTES + 2 * LEFT_BYTES, f"only {memory.available / 2**30:.1f} GiB are free on this machine"
    return memory.total - memory.available + ROOM_BYTES


def monitor(limit_bytes: int) -> dict[str, str]:
    """Ray's settings."""
    return {
        "RAY_memory_usage_threshold": f"{limit_bytes / psutil.virtual_memory().total:.4f}",
        "RAY_memory_monitor_refresh_ms": "100",
        "RAY_max_kill_memory_buffer_bytes": "0",  # one kill is enough for what is over the limit
    }


def make_newest(run: FaultyRun, kind: str) -> None:
    """The monitor picks the worker that began last: a process that has just been replaced."""
    num_done = run.num_steps_done
    first = run.processes(kind)[0]
    run.hurt(kind)
    wait_until(lambda: not run.is_running or run.processes(kind)[:1] not in ([], [first]), f"another {kind}")
    run.wait_for_step(num_done + 1)


def fill_memory_until_the_end_of(process: psutil.Process, limit_bytes: int) -> float:
    """Beside the run, half of what is missing at a time, and give it all back; returns when the process had ended."""
    pieces: list[bytes] = []

    def has_ended() -> bool:
        memory = psutil.virtual_memory()
        missing_bytes = limit_bytes - (memory.total - memory.available)
        if memory.available > LEFT_BYTES and missing_bytes > -JUMP_BYTES // 2:
            # No zeros: pages that nobody wrote take no memory.
            pieces.append(b"\1" * max(JUMP_BYTES, missing_bytes // 2))
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE

    wait_until(has_ended, "a kill by the memory monitor", timeout_s=120)
    return time.monotonic()
