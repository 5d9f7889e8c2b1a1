"""One clean run that every hurt one is laid beside, and the table of what was measured."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults import fault_table
from tests.faults.fault_table import FaultRow
from tests.faults.faulty_run import FaultyRun, RunStarter
from tests.faults.job_cluster import ray_jobs

__all__ = ["ray_jobs"]  # a fixture; the others are below

ROWS = pytest.StashKey[list[FaultRow]]()


@pytest.fixture(scope="session")
def clean_run(tmp_path_factory: pytest.TempPathFactory) -> FaultyRun:
    run = FaultyRun(tmp_path_factory.mktemp("clean"), "clean").start()
    assert run.wait() == 0, run.output
    return run


@pytest.fixture
def start_run(tmp_path: Path, ctrl_c_reaches_children: None) -> Iterator[RunStarter]:
    """Starts a run; overrides as on the command line. Whatever is left of it is killed after the test."""
    started: list[FaultyRun] = []

    def start(*overrides: str, **environment: str) -> FaultyRun:
        started.append(FaultyRun(tmp_path, f"run-{len(started)}", *overrides, **environment).start())
        return started[-1]

    yield start
    for run in started:
        run.kill()


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[[FaultRow], None]:
    """Puts a row into the table, before the test asks whether it is as it must be."""
    return request.config.stash.setdefault(ROWS, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Only `make faults` writes: a plain test run leaves the checkout as it is."""
    rows = config.stash.get(ROWS, [])
    if rows:
        terminalreporter.section("faults")
        is_make_faults = config.option.markexpr == ""
        table = fault_table.write(rows) if is_make_faults else fault_table.markdown(row.cells for row in rows)
        terminalreporter.write(table)
