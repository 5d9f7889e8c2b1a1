"""The loop's order of work, its independence of who was faster, and the prompts it uses."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from cluster.errors import ConfigError
from cluster.ledger import TrajectoryLedger, read_ledger
from cluster.metrics import MetricsLog
from cluster.types import (
    Completion,
    Message,
    Prompt,
    PublishedWeights,
    Reward,
    SamplingParameters,
    ScoredBatch,
    ScoredGroup,
    Task,
    Trajectory,
    TrajectoryGroup,
    UpdateResult,
)
from learners.collection import PlainCollector
from learners.driver import Driver, Records
from learners.prompt_schedule import PromptSchedule

SAMPLING = SamplingParameters(temperature=1.0, top_p=1.0, max_completion_tokens=4, samples_per_prompt=2, seed=5)


def prompt(index: int) -> Prompt:
    task = Task(task_id=f"task-{index}", messages=(Message(role="user", content="go"),))
    return Prompt(task=task, text=f"go {index}", token_ids=(index + 1,))


class RecordingRollouts:
    """Answers each prompt with completions of 3 tokens, one of two cut short; the last prompt finishes first if asked."""

    def __init__(self, calls: list[str], *, last_first: bool = False) -> None:
        self._calls = calls
        self._last_first = last_first
        self.samplings: list[SamplingParameters] = []
        self.version = 0

    def collect(self, prompts: Sequence[Prompt], sampling: SamplingParameters) -> Iterator[TrajectoryGroup]:
        self._calls.append(f"collect at version {self.version}")
        self.samplings.append(sampling)
        for each in reversed(prompts) if self._last_first else prompts:
            yield TrajectoryGroup(
                trajectories=tuple(self._trajectory(each, index) for index in range(sampling.samples_per_prompt))
            )

    def publish(self, weights: PublishedWeights) -> None:
        self.version = weights.policy_version
        self._calls.append(f"generators take version {weights.policy_version}")

    def _trajectory(self, each: Prompt, index: int) -> Trajectory:
        completion = Completion(
            token_ids=(7, 8, 9),
            rollout_logprobs=(-1.0, -1.0, -1.0),
            text=f"{each.text} answer {index}",
            finish_reason="length" if index else "stop",
            policy_version=self.version,
        )
        return Trajectory(prompt=each, sample_index=index, completion=completion)


class RecordingScoring:
    """Scores a trajectory by its task and sample: task 3, sample 1 is 3.1."""

    def score_stream(self, groups: Iterable[TrajectoryGroup]) -> Iterator[ScoredGroup]:
        for group in groups:
            scores = [int(group.prompt.task.task_id.split("-")[1]) + each.sample_index / 10 for each in group.trajectories]
            yield ScoredGroup(group=group, rewards=tuple(Reward(total=score, breakdown={"length": score}) for score in scores))


class RecordingLearner:
    """Two optimizer steps an update."""

    def __init__(self, calls: list[str]) -> None:
        self._calls = calls
        self.batches: list[ScoredBatch] = []

    def submit(self, batch: ScoredBatch) -> UpdateResult:
        self._calls.append(f"submit step {batch.step}")
        self.batches.append(batch)
        return UpdateResult(policy_version=self._version, metrics={"policy/loss": 0.5})

    def publish(self) -> PublishedWeights:
        self._calls.append(f"learner publishes version {self._version}")
        return PublishedWeights(policy_version=self._version, path="weights", checksum="0")

    @property
    def _version(self) -> int:
        return 2 * len(self.batches)


class Loop:
    """A driver among fakes, with everything they recorded."""

    def __init__(self, folder: Path, *, last_first: bool = False, num_prompts: int = 6) -> None:
        self.calls: list[str] = []
        self.rollouts = RecordingRollouts(self.calls, last_first=last_first)
        self.learner = RecordingLearner(self.calls)
        self.folder = folder
        self._log = MetricsLog(folder / "metrics.jsonl", folder / "tensorboard")
        self._driver = Driver(
            schedule=PromptSchedule([prompt(index) for index in range(num_prompts)], prompts_per_step=3, seed=1),
            collector=PlainCollector(self.rollouts, RecordingScoring(), SAMPLING),
            generators=self.rollouts,
            learner=self.learner,
            records=Records(ledger=TrajectoryLedger(folder / "trajectories"), metrics=self._log),
        )

    def run(self, num_steps: int) -> list[tuple[int, Mapping[str, float]]]:
        seen: list[tuple[int, Mapping[str, float]]] = []
        with self._log:
            self._driver.run(num_steps, on_step=lambda step, metrics: seen.append((step, metrics)))
        return seen


def test_each_step_rolls_out_updates_and_publishes_in_this_order(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    loop.run(2)
    assert loop.calls == [
        "collect at version 0",
        "submit step 0",
        "learner publishes version 2",
        "generators take version 2",
        "collect at version 2",
        "submit step 1",
        "learner publishes version 4",
        "generators take version 4",
    ]


def test_the_batch_does_not_depend_on_who_was_faster(tmp_path: Path) -> None:
    in_order, reversed_order = Loop(tmp_path / "a"), Loop(tmp_path / "b", last_first=True)
    in_order.run(2)
    reversed_order.run(2)
    assert in_order.learner.batches == reversed_order.learner.batches
    arrived = [group.group.prompt for group in in_order.learner.batches[0].groups]
    assert arrived == PromptSchedule([prompt(index) for index in range(6)], prompts_per_step=3, seed=1).prompts_of(0)


def test_each_step_samples_with_a_seed_of_its_own(tmp_path: Path) -> None:
    loop, again = Loop(tmp_path / "a"), Loop(tmp_path / "b")
    loop.run(3)
    again.run(3)
    seeds = [sampling.seed for sampling in loop.rollouts.samplings]
    assert len(set(seeds)) == 3
    assert seeds == [sampling.seed for sampling in again.rollouts.samplings]
    assert {sampling.samples_per_prompt for sampling in loop.rollouts.samplings} == {2}


def test_a_step_reports_its_metrics(tmp_path: Path) -> None:
    ((step, metrics),) = Loop(tmp_path).run(1)
    assert step == 0
    assert metrics["policy/version"] == 2.0
    assert metrics["policy/loss"] == 0.5
    assert metrics["rollout/truncated_frac"] == 0.5
    assert metrics["rollout/tokens_per_s"] == pytest.approx(3 * 2 * 3 / metrics["time/rollout_s"])
    tasks = [int(group.prompt.task.task_id.split("-")[1]) for group in first_groups(tmp_path)]
    assert metrics["score/length_mean"] == pytest.approx(sum(tasks) / len(tasks) + 0.05)  # sample indices 0 and 1 add 0 and 0.1
    assert {"time/learn_s", "time/publish_s"} <= metrics.keys()


def first_groups(folder: Path) -> list[TrajectoryGroup]:
    loop = Loop(folder / "again")
    loop.run(1)
    return [group.group for group in loop.learner.batches[0].groups]


def test_what_was_trained_on_is_written_down_once(tmp_path: Path) -> None:
    Loop(tmp_path).run(2)
    entries = list(read_ledger(tmp_path / "trajectories"))
    assert len({entry.key for entry in entries}) == len(entries) == 2 * 3 * 2
    assert [entry.policy_version for entry in entries] == [0] * 6 + [2] * 6
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1]
    assert all(line["policy/loss"] == 0.5 for line in lines)


@pytest.mark.parametrize(("num_prompts", "prompts_per_step"), [(12, 4), (10, 4), (7, 7), (1, 1)])
def test_an_epoch_uses_no_prompt_twice(num_prompts: int, prompts_per_step: int) -> None:
    prompts = [prompt(index) for index in range(num_prompts)]
    schedule = PromptSchedule(prompts, prompts_per_step=prompts_per_step, seed=3)
    steps_per_epoch = num_prompts // prompts_per_step
    epochs = [
        [each.text for step in range(steps_per_epoch) for each in schedule.prompts_of(epoch * steps_per_epoch + step)]
        for epoch in range(8)
    ]
    assert all(len(set(epoch)) == len(epoch) == steps_per_epoch * prompts_per_step for epoch in epochs)
    if num_prompts % prompts_per_step == 0:
        assert all(sorted(epoch) == sorted(each.text for each in prompts) for epoch in epochs)
    if num_prompts >= 7:
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    assert {text for epoch in epochs for text in epoch} == {each.text for each in prompts}


def test_a_run_goes_past_the_end_of_an_epoch_that_steps_do_not_tile(tmp_path: Path) -> None:
    # The ledger refuses a prompt that is twice in a step.
    assert len(Loop(tmp_path, num_prompts=4).run(8)) == 8


def test_a_step_larger_than_the_task_is_refused() -> None:
    with pytest.raises(ConfigError, match="prompts_per_step=3, but the task has only 2 prompts"):
        PromptSchedule([prompt(0), prompt(1)], prompts_per_step=3, seed=0)


def test_a_steps_prompts_depend_on_nothing_but_the_step() -> None:
    prompts = [prompt(index) for index in range(8)]
    walked = PromptSchedule(prompts, prompts_per_step=3, seed=9)
    for step in range(5):
        walked.prompts_of(step)
    fresh = PromptSchedule(prompts, prompts_per_step=3, seed=9)
    assert fresh.prompts_of(4) == walked.prompts_of(4)
    other_seed = PromptSchedule(prompts, prompts_per_step=3, seed=10)
    assert [other_seed.prompts_of(step) for step in range(5)] != [fresh.prompts_of(step) for step in range(5)]
