"""One clean run that every hurt one is laid beside, and the table of what was measured."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.faulty_run import FaultyRun, RunStarter


@pytest.fixture(scope="session")
def clean_run(tmp_path_factory: pytest.TempPathFactory) -> FaultyRun:
    run = FaultyRun(tmp_path_factory.mktemp("clean"), "clean").start()
    assert run.wait() == 0, run.output
    return run


@pytest.fixture
def start_run(tmp_path: Path) -> Iterator[RunStarter]:
    """Starts a run; keyword overrides as on the command line. Whatever is left of it is killed after the test."""
    started: list[FaultyRun] = []

    def start(*overrides: str) -> FaultyRun:
        started.append(FaultyRun(tmp_path, f"run-{len(started)}", *overrides).start())
        return started[-1]

    yield start
    for run in started:
        run.kill()
