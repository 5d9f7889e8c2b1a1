"""Ctrl-C and SIGTERM: at once, after what must end first, and twice. In processes of their own, for signals are everybody's."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import interrupts

ROOT = Path(interrupts.__file__).parents[1]


def started(program: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=ROOT)


IMPATIENT = """
import time
from cluster.interrupts import interruptible
try:
    with interruptible():
        print("up", flush=True)
        time.sleep(600)
finally:
    print("ending", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_interrupt_does_not_wait_for_a_clean_end(second: signal.Signals) -> None:
    process = started(IMPATIENT)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == b"ending\n"
    process.send_signal(second)
    assert process.wait(timeout=10) == 130


BUSY = """
import time
from cluster.interrupts import interruptible
try:
    with interruptible() as interrupts:
        with interrupts.deferred(GRACE_S):
            print("up", flush=True)
            end = time.monotonic() + WORK_S
            while time.monotonic() < end:
                time.sleep(0.01)
            print("work is done", flush=True)
        print("went on", flush=True)
except KeyboardInterrupt:
    try:
        with interrupts.deferred(GRACE_S):
            print("last words", flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@pytest.mark.parametrize(
    ("grace_s", "work_s", "said"),
    [
        (600.0, 0.5, ["work is done", "last words", "interrupted"]),
        (0.3, 600.0, ["last words", "interrupted"]),
    ],
)
def test_what_must_end_first_has_its_grace(grace_s: float, work_s: float, said: list[str]) -> None:
    process = started(BUSY.replace("GRACE_S", str(grace_s)).replace("WORK_S", str(work_s)))
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.read().decode().splitlines() == said
    assert process.wait(timeout=10) == 0
