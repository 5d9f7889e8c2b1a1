"""The cycle collector while a process sets up."""

import gc

import pytest

from cluster.processes.collector_pause import collector_paused


def test_the_collector_runs_again_afterwards_and_skips_what_was_made() -> None:
    frozen = gc.get_freeze_count()
    with collector_paused():
        assert not gc.isenabled()
        made: list[list[int]] = [[] for _ in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= frozen + len(made)
    gc.unfreeze()


def test_the_collector_runs_again_after_an_error() -> None:
    with pytest.raises(ImportError, match="no such package"), collector_paused():
        raise ImportError("no such package")
    assert gc.isenabled()
    gc.unfreeze()
