"""What is lost with a node: samples are drawn again before anything is learned from them, weights are published again."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import BatchLostError, LearnerRestartedError, SamplesLostError, WeightsLostError
from cluster.storage.ledger import LedgerEntry, audit_ledger, read_ledger
from cluster.types import ScoredGroup, TrajectoryGroup
from learners.steps.driver import MAX_LOST_PUBLICATIONS, MAX_LOST_ROUNDS
from tests.learners.steps.recorded_loop import Loop
from tests.records import Gone

NUM_STEPS = 3
Failing = Callable[..., Any]
Stream = Callable[[Iterable[TrajectoryGroup | None]], Iterator[ScoredGroup | None]]


def failing(function: Callable[..., Any], error: Exception, *, calls: Iterable[int]) -> Failing:
    """The same function, but for these of its calls, counted from 0."""
    number, at = iter(range(10**6)), frozenset(calls)

    def call(*arguments: Any, **keywords: Any) -> Any:
        if next(number) in at:
            raise error
        return function(*arguments, **keywords)

    return call


def without_texts(stream: Stream, *, call: int) -> Stream:
    number = iter(range(10**6))

    def scored(groups: Iterable[TrajectoryGroup | None]) -> Iterator[ScoredGroup | None]:
        is_lost = next(number) == call
        for each in stream(groups):
            yield replace(each, group=replace(each.group, texts=Gone())) if is_lost and each else each

    return scored


def lose_at_the_scorers(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    collect = failing(loop.rollouts.collect, SamplesLostError("samples are lost"), calls=[1])
    monkeypatch.setattr(loop.rollouts, "collect", collect)


def lose_texts(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop.scoring, "score_stream", without_texts(loop.scoring.score_stream, call=1))


def lose_at_the_ranks(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop.learner, "submit", failing(loop.learner.submit, BatchLostError("1 of 2 ranks"), calls=[1]))


@pytest.mark.parametrize("lose", [lose_at_the_scorers, lose_texts, lose_at_the_ranks])
def test_a_step_whose_samples_are_lost_is_sampled_again_and_trained_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lose: Callable[[Loop, pytest.MonkeyPatch], None]
) -> None:
    clean, loop = Loop(tmp_path / "clean"), Loop(tmp_path / "lost")
    clean.run(NUM_STEPS)
    lose(loop, monkeypatch)
    loop.run(NUM_STEPS)
    (note,) = loop.notes
    assert note.startswith("step 1: ")
    assert note.endswith("; they are sampled again")
    assert [call for call in loop.calls if "submit" in call] == [f"submit step {step}" for step in range(NUM_STEPS)]
    entries = list(read_ledger(tmp_path / "lost" / "trajectories"))
    assert {(entry.step, entry.attempt) for entry in entries} == {(0, 1), (1, 2), (2, 1)}
    assert [first_attempt(entry) for entry in entries] == list(read_ledger(tmp_path / "clean" / "trajectories"))
    assert audit_ledger(tmp_path / "lost" / "trajectories").problems == ()


def first_attempt(entry: LedgerEntry) -> LedgerEntry:
    return replace(entry, attempt=1)


def test_samples_that_are_lost_again_and_again_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(tmp_path)
    monkeypatch.setattr(loop.learner, "submit", failing(loop.learner.submit, BatchLostError("1 of 2 ranks"), calls=range(99)))
    with pytest.raises(BatchLostError):
        loop.run(NUM_STEPS)
    assert len(loop.notes) == MAX_LOST_ROUNDS - 1


def test_ranks_that_are_lost_while_samples_are_drawn_again_take_the_step_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean, loop = Loop(tmp_path / "clean"), Loop(tmp_path / "lost", lost_at=(1,))
    clean.run(NUM_STEPS)
    monkeypatch.setattr(loop.learner, "submit", failing(loop.learner.submit, BatchLostError("1 of 2 ranks"), calls=[1]))
    loop.run(NUM_STEPS)
    assert [note.partition(":")[0] for note in loop.notes] == ["step 1", "the ranks were lost"]
    ledgers = [list(read_ledger(tmp_path / name / "trajectories")) for name in ("clean", "lost")]
    assert ledgers[0] == ledgers[1]  # the step was done from the start once more, at the first attempt


def test_weights_that_are_lost_on_the_way_are_published_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(tmp_path)
    lost = WeightsLostError("version 2 cannot be had from node 7 any more")
    monkeypatch.setattr(loop.rollouts, "publish", failing(loop.rollouts.publish, lost, calls=[1]))
    loop.run(1)
    assert loop.notes == [f"{lost}; they are published again"]
    assert loop.calls[-4:] == [
        "learner publishes version 2",
        "learner publishes version 2",
        "generators take version 2",
        "save after 1",
    ]


def test_ranks_that_are_lost_with_the_weights_take_the_steps_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clean, loop = Loop(tmp_path / "clean"), Loop(tmp_path / "lost")
    clean.run(NUM_STEPS)

    def lost_with_their_node() -> None:
        loop.learner._num_steps_done = loop.learner._num_steps_saved
        raise LearnerRestartedError("the ranks were lost")

    publish, number = loop.learner.publish, iter(range(99))
    monkeypatch.setattr(
        loop.rollouts, "publish", failing(loop.rollouts.publish, WeightsLostError("version 6 is lost"), calls=[3])
    )
    monkeypatch.setattr(loop.learner, "publish", lambda: lost_with_their_node() if next(number) == 4 else publish())
    loop.run(NUM_STEPS)
    assert loop.notes == ["version 6 is lost; they are published again", "the ranks were lost: back from step 2 to 2"]
    ledgers = [list(read_ledger(tmp_path / name / "trajectories")) for name in ("clean", "lost")]
    assert ledgers[0] == ledgers[1]


def test_weights_that_never_arrive_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(tmp_path)
    lost = WeightsLostError("version 0 cannot be had")
    monkeypatch.setattr(loop.rollouts, "publish", failing(loop.rollouts.publish, lost, calls=range(99)))
    with pytest.raises(WeightsLostError):
        loop.run(1)
    assert len(loop.notes) == MAX_LOST_PUBLICATIONS - 1
