"""The record of a sweep: what it keeps, and which trial is best."""

from pathlib import Path

import pytest

from cluster.errors import DataError
from learners.sweep.record import SweepRecord, Trial, best_first, best_of, is_sweep

TRIALS = [
    Trial(name="slow", settings={"a": "1"}, state="running", value=9.0),
    Trial(name="good", settings={"a": "2"}, state="completed", value=0.7),
    Trial(name="ahead when stopped", settings={"a": "3"}, state="stopped", value=0.9),
    Trial(name="bad", settings={"a": "4"}, state="completed", value=-0.1),
    Trial(name="broken", settings={"a": "5"}, state="failed", error="no such model"),
]


def record(directory: Path, *, mode: str = "max", trials: list[Trial] = TRIALS) -> SweepRecord:
    return SweepRecord(directory, metric="score/mean", mode=mode, trials=trials)


def test_trials_that_came_through_come_first() -> None:
    assert [trial.name for trial in best_first(TRIALS, "max")] == ["good", "bad", "ahead when stopped", "slow", "broken"]
    assert [trial.name for trial in best_first(TRIALS, "min")][:2] == ["bad", "good"]


def test_a_trial_without_an_end_is_never_the_best(tmp_path: Path) -> None:
    best = best_of(record(tmp_path, mode="min"))
    assert best is not None
    assert best.name == "bad"
    assert best_of(record(tmp_path, trials=[TRIALS[0], TRIALS[4]])) is None


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = record(tmp_path)
    added = written.add({"a": "6"})
    written.change(added.name, state="interrupted", step=3, seconds=1.5)
    found = SweepRecord.read(tmp_path)
    assert found.trials == written.trials
    assert (found.metric, found.mode, added.name) == ("score/mean", "max", "trial-006")
    assert is_sweep(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{", '{"metric": "a", "mode": "max", "trials": [{"name": "x"}]}'])
def test_a_broken_record_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(DataError, match=r"sweep\.json: not the record of a sweep"):
        SweepRecord.read(tmp_path)
