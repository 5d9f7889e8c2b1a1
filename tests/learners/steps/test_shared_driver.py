"""Turns on shared devices: who is there when, in the usual order and after losses. The roles are fakes that refuse to collide."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import LearnerRestartedError, SamplesLostError
from cluster.processes.interrupts import Interrupts
from cluster.storage.ledger import TrajectoryLedger, audit_ledger
from cluster.storage.ledger_writer import LedgerWriter
from cluster.storage.metrics import MetricsLog
from cluster.types import (
    FloatArray,
    Prompt,
    PublishedWeights,
    SamplingParameters,
    SaveReport,
    ScoredBatch,
    ScoredGroup,
    SentWeights,
    TrajectoryGroup,
    UpdateResult,
)
from learners.steps.collection import PlainCollector
from learners.steps.driver import Records
from learners.steps.prompt_schedule import PromptSchedule
from learners.steps.shared_driver import LearnerInTurn, SharedDriver, Turns
from tests.learners.steps.recorded_loop import SAMPLING, RecordingScoring, prompt
from tests.records import completion, group_of

HAND_OVER = ["engines sleep", "scorers rest", "learner wakes"]
HAND_BACK = ["learner rests", "weights wake", "engines take version {}", "scorers wake", "cache wakes"]


class Device:
    """Holds what its roles have on it, in the order of what happened."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.present = {"weights", "cache", "scorers"}

    def comes(self, what: str, call: str, *, beside: set[str]) -> None:
        """`beside`: what may be there; anything else is a collision."""
        if what not in self.present:
            assert self.present <= beside, f"{call}, while {self.present} are there"
            self.calls.append(call)
            self.present.add(what)

    def leaves(self, what: str, call: str) -> None:
        if what in self.present:
            self.calls.append(call)
            self.present.remove(what)


class Engines:
    """Sample only where weights and cache are awake. With `forget` their weights are gone once they have slept."""

    def __init__(self, device: Device, *, forget: bool) -> None:
        self._device, self._forget = device, forget
        self.version: int | None = 0

    def sleep(self) -> None:
        if "weights" in self._device.present and self._forget:
            self.version = None
        self._device.present.discard("cache")
        self._device.leaves("weights", "engines sleep")

    def wake_weights(self) -> None:
        self._device.comes("weights", "weights wake", beside={"scorers"})

    def wake_cache(self) -> None:
        assert self.version is not None, "the engine would sample from memory that nobody wrote"
        self._device.comes("cache", "cache wakes", beside={"weights", "scorers"})

    def publish(self, weights: PublishedWeights) -> None:
        assert "weights" in self._device.present
        self.version = weights.policy_version
        self._device.calls.append(f"engines take version {self.version}")

    def collect(self, prompts: Sequence[Prompt], sampling: SamplingParameters) -> Any:
        assert {"weights", "cache", "scorers"} <= self._device.present
        self._device.calls.append(f"sample at {self.version}")
        assert self.version is not None
        for each in prompts:
            answers = {index: completion(7, 8) for index in range(sampling.samples_per_prompt)}
            yield group_of(each, answers, policy_version=self.version)


class Scorers(RecordingScoring):
    def __init__(self, device: Device) -> None:
        super().__init__()
        self._device = device

    def rest(self) -> None:
        self._device.leaves("scorers", "scorers rest")

    def wake(self) -> None:
        self._device.comes("scorers", "scorers wake", beside={"weights"})


class Learner:
    """Two optimizer steps an update. `loses`: calls at which, once each, its ranks are lost with their device's state."""

    def __init__(self, device: Device, loses: Sequence[str]) -> None:
        self._device, self._loses = device, list(loses)
        self._num_steps_done = self._num_saved = 0

    def _call(self, name: str) -> None:
        if name in self._loses:
            self._loses.remove(name)
            self._device.present.discard("learner")
            self._num_steps_done = self._num_saved
            raise LearnerRestartedError("the ranks were lost")

    def wake(self) -> None:
        self._call("wake")
        self._device.comes("learner", "learner wakes", beside=set())

    def rest(self) -> None:
        self._call("rest")
        self._device.leaves("learner", "learner rests")

    def submit(self, batch: ScoredBatch, meanwhile: Callable[[], object] | None = None) -> UpdateResult:
        self._call("submit")
        assert self._device.present == {"learner"}
        if "samples" in self._loses:
            self._loses.remove("samples")
            raise SamplesLostError("tokens are lost with a node")
        self._device.calls.append(f"learn step {batch.step}")
        self._num_steps_done = batch.step + 1
        return UpdateResult(policy_version=self._version, metrics={})

    def start_kl(self, groups: Sequence[ScoredGroup]) -> tuple[float, ...]:
        self._call("start_kl")
        assert self._device.present == {"learner"}
        self._device.calls.append("learner compares")
        return (0.5,)

    def completion_logprobs(self, groups: Sequence[TrajectoryGroup]) -> tuple[FloatArray, ...]:
        raise AssertionError("nobody asks")

    def export(self, directory: Path, texts: Sequence[Any]) -> str:
        assert self._device.present == {"learner"}
        return "no room"

    def publish(self) -> PublishedWeights:
        self._call("publish")
        return SentWeights(policy_version=self._version, checksum="0")

    def wait_until_ready(self) -> int:
        return self._num_steps_done

    def save(self) -> SaveReport | None:
        self._num_saved = self._num_steps_done
        return None

    def finish_saving(self) -> SaveReport | None:
        return None

    @property
    def _version(self) -> int:
        return 2 * self._num_steps_done


class Loop:
    def __init__(self, folder: Path, *, loses: Sequence[str] = (), forget: bool = False) -> None:
        self.device, self.notes, self.folder = Device(), list[str](), folder
        engines, scorers = Engines(self.device, forget=forget), Scorers(self.device)
        learner = Learner(self.device, loses)
        turns = Turns(engines, scorers, learner, engines_forget=forget)
        self.between = LearnerInTurn(learner, turns)
        self._log = MetricsLog(folder / "metrics.jsonl", folder / "tensorboard")
        self._driver = SharedDriver(
            schedule=PromptSchedule([prompt(index) for index in range(4)], prompts_per_step=2, seed=1),
            collector=PlainCollector(engines, scorers, SAMPLING),
            generators=turns,
            learner=learner,
            records=Records(
                ledger=LedgerWriter(TrajectoryLedger(folder / "trajectories")),
                metrics=self._log,
                failed_batches=folder / "failed_batches",
                note=self.notes.append,
            ),
            save_every=1,
            max_unscored_frac=0.2,
            interrupts=Interrupts(),
        )

    def run(self, num_steps: int) -> list[str]:
        with self._log:
            self._driver.run(num_steps, on_step=lambda step, metrics: None)
        assert audit_ledger(self.folder / "trajectories").problems == ()
        return self.device.calls


def turn(version_before: int, step: int) -> list[str]:
    back = [call.format(2 * (step + 1)) for call in HAND_BACK]
    return [f"sample at {version_before}", *HAND_OVER, f"learn step {step}", *back]


@pytest.mark.parametrize("forget", [False, True], ids=["level 1", "level 2"])
def test_engines_sleep_before_the_learner_comes_and_wake_their_cache_last(tmp_path: Path, forget: bool) -> None:
    calls = Loop(tmp_path, forget=forget).run(2)
    assert calls == ["engines take version 0", *turn(0, 0), *turn(2, 1)]


@pytest.mark.parametrize("forget", [False, True], ids=["level 1", "level 2"])
@pytest.mark.parametrize("lost_in", ["wake", "submit", "rest", "publish"])
def test_the_order_holds_after_a_loss_of_ranks(tmp_path: Path, lost_in: str, forget: bool) -> None:
    """Wherever that is: the fakes refuse to meet on the device. New ranks begin on the host."""
    loop = Loop(tmp_path, loses=[lost_in], forget=forget)
    calls = loop.run(2)
    assert calls[-len(turn(2, 1)) :] == turn(2, 1)
    assert loop.device.present == {"weights", "cache", "scorers"}


@pytest.mark.parametrize("forget", [False, True], ids=["level 1", "level 2"])
def test_samples_that_are_lost_are_drawn_again_by_engines_that_are_awake(tmp_path: Path, forget: bool) -> None:
    loop = Loop(tmp_path, loses=["samples"], forget=forget)
    calls = loop.run(1)
    assert calls.count("sample at 0") == 2
    assert calls[-len(turn(0, 0)) :] == turn(0, 0)


@pytest.mark.parametrize("forget", [False, True], ids=["level 1", "level 2"])
def test_whoever_asks_the_learner_between_steps_leaves_the_engines_as_they_were(tmp_path: Path, forget: bool) -> None:
    loop = Loop(tmp_path, forget=forget)
    assert loop.between.start_kl([]) == (0.5,)
    taken = ["engines take version 0"] if forget else []
    back = ["learner rests", "weights wake", *taken, "scorers wake", "cache wakes"]
    assert loop.device.calls == [*HAND_OVER, "learner compares", *back]
    assert loop.between.export(tmp_path, []) == "no room"
    assert loop.device.present == {"weights", "cache", "scorers"}


@pytest.mark.parametrize("loses", [["wake"], ["start_kl"], ["rest"], ["start_kl", "rest"]])
def test_ranks_lost_between_steps_are_told_after_the_devices_are_handed_back(tmp_path: Path, loses: list[str]) -> None:
    loop = Loop(tmp_path, loses=loses)
    with pytest.raises(LearnerRestartedError):
        loop.between.start_kl([])
    assert loop.device.present == {"weights", "cache", "scorers"}
    assert loop.between.start_kl([]) == (0.5,)
