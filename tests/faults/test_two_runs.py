"""Two runs in one directory: the second is refused, and the first does not notice."""

import time
from collections.abc import Callable

import pytest

from tests.faults.fault_table import FaultRow
from tests.faults.faulty_run import RunStarter

BAR_S = 2.0


@pytest.mark.timeout(600)
@pytest.mark.faults
def test_the_second_is_refused(start_run: RunStarter, measured: Callable[[FaultRow], None]) -> None:
    first = start_run()
    first.wait_for_step(1)
    started_s = time.monotonic()
    second = start_run(f"name={first.path.name}")
    exit_code = second.wait()
    refused_s = time.monotonic() - started_s
    done = first.num_steps_done
    first.wait_for_step(done + 1)
    goes_on = first.num_steps_done > done
    measured(
        FaultRow(
            row="18",
            fault="a second run in the directory of a living one",
            num_injected=1,
            num_survived=int(goes_on),
            measured=f"exit {exit_code} after {refused_s:.1f} s",
            bar=f"exit 4, {BAR_S:.0f} s",
            holds=exit_code == 4 and goes_on and refused_s <= BAR_S,
        )
    )
    assert exit_code == 4, second.output
    assert "is in use by pid" in second.output
    assert goes_on
