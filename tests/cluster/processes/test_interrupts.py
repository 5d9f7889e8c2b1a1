"""Ctrl-C and SIGTERM: at once, after what must end first, and twice. In processes of their own, for signals are everybody's."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.processes import interrupts

ROOT = Path(interrupts.__file__).parents[2]

pytestmark = pytest.mark.usefixtures("ctrl_c_reaches_children")


def started(program: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=ROOT)


IMPATIENT = """
import time
from cluster.processes.interrupts import Interrupts, interruptible
try:
    with interruptible(Interrupts()):
        print("up", flush=True)
        time.sleep(600)
finally:
    print("ending", flush=True)
    time.sleep(600)
"""


LAST_ACT = "interrupts = Interrupts()\ninterrupts.last_act = lambda: "


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
from cluster.processes.interrupts import Interrupts, interruptible
try:
    interrupts = Interrupts(end_s=END_S)
    with interruptible(interrupts):
        interrupts.last_act = lambda: print("last act", flush=True)
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


def busy(*, grace_s: float, work_s: float, end_s: float) -> str:
    values = {"GRACE_S": grace_s, "WORK_S": work_s, "END_S": end_s}
    program = BUSY
    for name, value in values.items():
        program = program.replace(name, str(value))
    return program


@pytest.mark.parametrize(
    ("grace_s", "work_s", "said"),
    [
        (600.0, 0.5, ["work is done", "last words", "interrupted"]),
        (0.3, 600.0, ["last words", "interrupted"]),
    ],
)
def test_what_must_end_first_has_its_grace(grace_s: float, work_s: float, said: list[str]) -> None:
    process = started(busy(grace_s=grace_s, work_s=work_s, end_s=600.0))
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.read().decode().splitlines() == said
    assert process.wait(timeout=10) == 0


def test_an_end_that_takes_too_long_is_cut_short() -> None:
    process = started(busy(grace_s=600.0, work_s=600.0, end_s=0.5))
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 130
    assert process.stdout.read() == b"last act\n"


@pytest.mark.parametrize("last_act", ["print('last act', flush=True)", "open('/nonexistent')"])
def test_a_second_interrupt_leaves_time_for_a_last_act(last_act: str) -> None:
    process = started(IMPATIENT.replace("Interrupts()", "interrupts").replace("try:", f"{LAST_ACT}{last_act}\ntry:", 1))
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == b"ending\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
    assert process.stdout.read() == (b"last act\n" if "print" in last_act else b"")


CAUGHT = """
import os, signal, time
from cluster.processes.interrupts import Interrupts, interruptible
interrupts = Interrupts(end_s=0.5)
try:
    with interruptible(interrupts):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(600)
except KeyboardInterrupt:
    interrupts.over()
time.sleep(1.0)
print("lived on", flush=True)
"""


def test_a_process_that_has_ended_cleanly_may_go_on() -> None:
    process = started(CAUGHT)
    assert process.stdout is not None
    assert process.stdout.read() == b"lived on\n"
    assert process.wait(timeout=10) == 0


def test_a_background_job_of_a_shell_ignores_ctrl_c_and_ends_at_sigterm() -> None:
    ignoring = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    process = started(ignoring + busy(grace_s=0.3, work_s=600.0, end_s=600.0))
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1.0)  # longer than the grace that an interrupt would have
    process.send_signal(signal.SIGTERM)
    assert process.stdout.read().decode().splitlines() == ["last words", "interrupted"]
    assert process.wait(timeout=10) == 0


def test_these_tests_pass_as_a_background_job_of_a_shell() -> None:
    """A shell has SIGINT ignored in its background jobs, and children inherit that."""
    test = f"{Path(__file__).relative_to(ROOT)}::{test_a_process_that_has_ended_cleanly_may_go_on.__name__}"
    command = f"trap '' INT; exec {sys.executable} -m pytest -q -p no:cacheprovider {test}"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout
