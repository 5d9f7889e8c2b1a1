"""Why an engine ended, told from real processes that end in the ways engines do."""

import multiprocessing
import os
import signal
import time

import pytest

from serving.engine import engine_watch
from serving.engine.engine_watch import EngineWatch


def end_by(number: int) -> None:
    if number < 0:
        os.kill(os.getpid(), -number)
    if number > 0:
        os._exit(number)
    time.sleep(600)


@pytest.mark.parametrize(
    ("end", "has_crashed"),
    [(-signal.SIGKILL, False), (-signal.SIGTERM, False), (-signal.SIGSEGV, True), (-signal.SIGABRT, True), (1, True)],
)
def test_an_engine_that_was_killed_has_not_crashed(monkeypatch: pytest.MonkeyPatch, end: int, has_crashed: bool) -> None:
    process = multiprocessing.get_context("spawn").Process(target=end_by, args=(end,), daemon=True)
    process.start()
    watch = EngineWatch([process])
    monkeypatch.setattr(engine_watch, "EXIT_WITHIN_S", 60.0)
    assert watch.crashed() is has_crashed


def test_an_engine_that_told_of_its_end_and_still_runs_has_crashed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_watch, "EXIT_WITHIN_S", 0.01)
    process = multiprocessing.get_context("spawn").Process(target=end_by, args=(0,), daemon=True)
    process.start()
    try:
        assert EngineWatch([process]).crashed()
    finally:
        process.kill()
        process.join()


def test_all_that_were_inside_count_whoever_learns_of_the_end_first() -> None:
    watch = EngineWatch([])
    with watch.request():
        with watch.request():
            assert watch.num_at_death() == 2
        assert watch.num_at_death() == 2


def test_a_request_that_was_alone_counts_as_one() -> None:
    watch = EngineWatch([])
    with watch.request():
        pass
    with watch.request():
        assert watch.num_at_death() == 1
