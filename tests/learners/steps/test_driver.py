"""The loop's order of work, its independence of who was faster, and the prompts it uses."""

import json
import signal
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import LearnerRestartedError, RaywardError
from cluster.messages import Message
from cluster.processes.interrupts import Interrupts
from cluster.storage.ledger import TrajectoryLedger, read_ledger
from cluster.storage.ledger_writer import LedgerWriter
from cluster.storage.metrics import MetricsLog
from cluster.types import (
    Completion,
    Prompt,
    PublishedWeights,
    Reward,
    SamplingParameters,
    SaveReport,
    ScoredBatch,
    ScoredGroup,
    SentWeights,
    Task,
    TrajectoryGroup,
    UpdateResult,
)
from learners.steps.collection import DynamicSampling, GreedyBaseline, PlainCollector
from learners.steps.driver import Driver, Records
from learners.steps.prompt_schedule import PromptSchedule
from tests.records import completion, group_of

SAMPLING = SamplingParameters(temperature=1.0, top_p=1.0, max_completion_tokens=4, samples_per_prompt=2, seed=5)


def prompt(index: int) -> Prompt:
    task = Task(task_id=f"task-{index}", messages=(Message(role="user", content="go"),))
    return Prompt(task=task, text=f"go {index}", token_ids=(index + 1,))


class RecordingRollouts:
    """Answers each prompt with completions of 3 tokens, one of two cut short; the last prompt finishes first if asked."""

    def __init__(self, calls: list[str], *, last_first: bool = False, failed: Collection[tuple[int, int]] = ()) -> None:
        """`failed`: (task, sample) for which the engine has no completion."""
        self._calls = calls
        self._last_first = last_first
        self._failed = failed
        self.samplings: list[SamplingParameters] = []
        self.version = 0

    def collect_each(
        self, requests: Sequence[tuple[Prompt, SamplingParameters]]
    ) -> Iterator[tuple[SamplingParameters, TrajectoryGroup]]:
        for each, sampling in requests:
            yield from ((sampling, group) for group in self.collect([each], sampling))

    def collect(self, prompts: Sequence[Prompt], sampling: SamplingParameters) -> Iterator[TrajectoryGroup]:
        self._calls.append(f"collect at version {self.version}")
        self.samplings.append(sampling)
        for each in reversed(prompts) if self._last_first else prompts:
            task, samples = int(each.task.task_id.split("-")[1]), range(sampling.samples_per_prompt)
            yield group_of(
                each,
                {index: self._completion(each, index) for index in samples if (task, index) not in self._failed},
                policy_version=self.version,
                failures={index: "its request failed" for index in samples if (task, index) in self._failed},
            )

    def publish(self, weights: PublishedWeights) -> None:
        self.version = weights.policy_version
        self._calls.append(f"generators take version {weights.policy_version}")

    def _completion(self, each: Prompt, index: int) -> Completion:
        return completion(7, 8, 9, text=f"{each.text} answer {index}", finish_reason="length" if index else "stop")


class RecordingScoring:
    """Scores a trajectory by its task and sample: task 3, sample 1 is 3.1. `unscored`: (task, sample) that have no score."""

    def __init__(self, unscored: Collection[tuple[int, int]] = ()) -> None:
        self._unscored = unscored

    def score_stream(self, groups: Iterable[TrajectoryGroup | None]) -> Iterator[ScoredGroup]:
        for group in groups:
            assert group is not None
            task = int(group.task_id.split("-")[1])
            scores = {each.sample_index: task + each.sample_index / 10 for each in group.samples}
            problems = {sample: "the judge fell asleep" for sample in scores if (task, sample) in self._unscored}
            rewards = (
                Reward(total=score, breakdown={"length": score}) for sample, score in scores.items() if sample not in problems
            )
            yield ScoredGroup(group=group, rewards=tuple(rewards), problems=problems)


class RecordingLearner:
    """Two optimizer steps an update. At the first submission of a step in `lost_at` its ranks go back to what was saved."""

    def __init__(
        self, calls: list[str], *, lost_at: Sequence[int] = (), num_steps_saved: int = 0, problem: str = "", skips: bool = False
    ) -> None:
        self._calls = calls
        self._still_lost_at = list(lost_at)
        self._num_steps_done = self._num_steps_saved = num_steps_saved
        self._problem = problem
        self._skips = skips
        self._saving: SaveReport | None = None
        self.batches: list[ScoredBatch] = []

    def wait_until_ready(self) -> int:
        return self._num_steps_done

    def save(self) -> SaveReport | None:
        self._calls.append(f"save after {self._num_steps_done}")
        before = self.finish_saving()
        self._saving = SaveReport(step=self._num_steps_done, seconds=0.5, problem=self._problem)
        self._num_steps_saved = self._num_steps_done
        return before

    def finish_saving(self) -> SaveReport | None:
        saving, self._saving = self._saving, None
        return saving

    def submit(self, batch: ScoredBatch, meanwhile: Callable[[], object] | None = None) -> UpdateResult:
        if batch.step in self._still_lost_at:
            self._still_lost_at.remove(batch.step)
            self._num_steps_done = self._num_steps_saved
            raise LearnerRestartedError("the ranks were lost")
        self._calls.append(f"submit step {batch.step}")
        self.batches.append(batch)
        self._num_steps_done = batch.step + 1
        skipped = 2.0 * len(self.batches) if self._skips else 0.0
        return UpdateResult(policy_version=self._version, metrics={"policy/loss": 0.5, "optim/skipped_in_a_row": skipped})

    def publish(self) -> PublishedWeights:
        self._calls.append(f"learner publishes version {self._version}")
        return SentWeights(policy_version=self._version, checksum="0")

    @property
    def _version(self) -> int:
        return 2 * self._num_steps_done


class Calls(list[str]):
    """What happened, in order. At the call `interrupt_at` Ctrl-C is pressed."""

    def __init__(self, interrupts: Interrupts, interrupt_at: str) -> None:
        super().__init__()
        self._interrupts = interrupts
        self._interrupt_at = interrupt_at

    def append(self, call: str) -> None:
        super().append(call)
        if call == self._interrupt_at:
            self._interrupts.on_signal(signal.SIGINT, None)


class Loop:
    """A driver among fakes, with everything they recorded."""

    def __init__(
        self,
        folder: Path,
        *,
        last_first: bool = False,
        num_prompts: int = 6,
        unscored: Collection[tuple[int, int]] = (),
        failed: Collection[tuple[int, int]] = (),
        max_unscored_frac: float = 0.2,
        min_rewards: int = 1,
        interrupt_at: str = "",
        resamples: bool = False,
        with_greedy: bool = False,
        **learner: Any,
    ) -> None:
        interrupts = Interrupts()
        self.calls = Calls(interrupts, interrupt_at)
        self.notes: list[str] = []
        self.rollouts = RecordingRollouts(self.calls, last_first=last_first, failed=failed)
        self.learner = RecordingLearner(self.calls, **learner)
        self.folder = folder
        self._log = MetricsLog(folder / "metrics.jsonl", folder / "tensorboard")
        schedule = PromptSchedule([prompt(index) for index in range(num_prompts)], prompts_per_step=3, seed=1)
        ledger = LedgerWriter(TrajectoryLedger(folder / "trajectories"))
        plain = PlainCollector(self.rollouts, RecordingScoring(unscored), SAMPLING, min_rewards=min_rewards)
        self._driver = Driver(
            schedule=schedule,
            collector=GreedyBaseline(self.rollouts, RecordingScoring(unscored), SAMPLING)
            if with_greedy
            else DynamicSampling(plain, schedule, ledger, max_rounds=1)
            if resamples
            else plain,
            generators=self.rollouts,
            learner=self.learner,
            records=Records(
                ledger=ledger,
                metrics=self._log,
                failed_batches=folder / "failed_batches",
                note=self.notes.append,
            ),
            save_every=2,
            max_unscored_frac=max_unscored_frac,
            interrupts=interrupts,
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
        "learner publishes version 0",  # whatever the generators started with, they hold the learner's weights
        "generators take version 0",
        "collect at version 0",
        "submit step 0",
        "learner publishes version 2",
        "generators take version 2",
        "collect at version 2",
        "submit step 1",
        "learner publishes version 4",
        "generators take version 4",
        "save after 2",
    ]


def test_lost_ranks_go_back_to_the_checkpoint_and_leave_the_records_of_a_clean_run(tmp_path: Path) -> None:
    clean, broken = Loop(tmp_path / "clean"), Loop(tmp_path / "broken", lost_at=(1, 3, 3))
    clean.run(5)
    broken.run(5)
    assert broken.notes == [
        "the ranks were lost: back from step 1 to 0",
        "the ranks were lost: back from step 3 to 2",
        "the ranks were lost: back from step 3 to 2",
    ]
    assert list(read_ledger(tmp_path / "clean" / "trajectories")) == list(read_ledger(tmp_path / "broken" / "trajectories"))
    clean_steps, broken_steps = ([line["step"] for line in metric_lines(tmp_path / name)] for name in ("clean", "broken"))
    assert clean_steps == broken_steps == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("interrupt_at", "num_steps_done"),
    [
        ("collect at version 4", 2),  # already saved, and now once more
        ("collect at version 6", 3),
        ("submit step 3", 4),  # the update at work is finished first
        ("learner publishes version 6", 3),
        ("generators take version 6", 3),
    ],
)
def test_ctrl_c_saves_the_steps_that_are_done(tmp_path: Path, interrupt_at: str, num_steps_done: int) -> None:
    loop = Loop(tmp_path, interrupt_at=interrupt_at)
    with pytest.raises(KeyboardInterrupt):
        loop.run(9)
    assert loop.calls[-1] == f"save after {num_steps_done}"
    assert {entry.step for entry in read_ledger(tmp_path / "trajectories")} == set(range(num_steps_done))
    assert [line["step"] for line in metric_lines(tmp_path)] == list(range(num_steps_done))


def test_ctrl_c_while_the_ranks_come_back_ends_the_run_where_it_can_be_resumed(tmp_path: Path) -> None:
    loop = Loop(tmp_path, lost_at=(3,), interrupt_at="learner publishes version 4")
    with pytest.raises(KeyboardInterrupt):
        loop.run(9)
    assert {entry.step for entry in read_ledger(tmp_path / "trajectories")} <= {0, 1}


def metric_lines(folder: Path) -> list[dict[str, Any]]:
    """Those of the training steps."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "stage" not in line]


def test_a_resumed_run_does_the_steps_that_are_missing(tmp_path: Path) -> None:
    Loop(tmp_path).run(3)  # killed after step 2, when the newest checkpoint was that of two steps
    resumed = Loop(tmp_path, num_steps_saved=2)
    resumed.run(4)
    assert [batch.step for batch in resumed.learner.batches] == [2, 3]
    assert resumed.calls[:3] == ["learner publishes version 4", "generators take version 4", "collect at version 4"]
    assert [entry.step for entry in read_ledger(tmp_path / "trajectories")] == [step for step in range(4) for _ in range(6)]
    assert [line["step"] for line in metric_lines(tmp_path)] == [0, 1, 2, 3]


def test_a_full_disk_is_told_and_ends_the_run_after_three_in_a_row(tmp_path: Path) -> None:
    loop = Loop(tmp_path, problem="OSError: No space left on device")
    with pytest.raises(RaywardError, match="3rd in a row"):
        loop.run(20)
    assert [batch.step for batch in loop.learner.batches] == list(range(8))  # saved after 2, 4, 6; the third is known at 8
    assert len(loop.notes) == 2
    assert "No space left on device; training goes on" in loop.notes[0]


def test_a_trajectory_without_a_score_is_left_out_and_written_down(tmp_path: Path) -> None:
    loop = Loop(tmp_path, unscored=[(0, 1)], num_prompts=3)
    ((_, metrics),) = loop.run(1)
    assert metrics["score/unscored_frac"] == pytest.approx(1 / 6)
    trained = [each for group in loop.learner.batches[0].groups for each in group.samples]
    assert len(trained) == 5
    entries = {(entry.task_id, entry.sample_index): entry for entry in read_ledger(tmp_path / "trajectories")}
    missing = entries.pop(("task-0", 1))
    assert (missing.outcome, missing.reward, missing.problem) == ("unscored", None, "the judge fell asleep")
    assert {entry.outcome for entry in entries.values()} == {"trained"}
    assert "1 trajectories without a score are left out; first, task 'task-0', sample 1" in loop.notes[0]


def test_a_group_with_too_few_scores_is_left_out_for_a_method_that_compares(tmp_path: Path) -> None:
    loop = Loop(tmp_path, unscored=[(0, 1)], num_prompts=3, min_rewards=2)
    loop.run(1)
    assert {group.group.task_id for group in loop.learner.batches[0].groups} == {"task-1", "task-2"}
    outcomes = {(entry.task_id, entry.sample_index): entry.outcome for entry in read_ledger(tmp_path / "trajectories")}
    assert (outcomes["task-0", 0], outcomes["task-0", 1], outcomes["task-1", 0]) == ("left_out", "unscored", "trained")


def test_what_dynamic_sampling_does_not_choose_is_written_down_and_counted(tmp_path: Path) -> None:
    flat = int(first_groups(tmp_path)[0].task_id.split("-")[1])
    loop = Loop(tmp_path, unscored=[(flat, 1)], resamples=True)  # one score is no contrast: another prompt takes the place
    ((_, metrics),) = loop.run(1)
    trained = {int(group.group.task_id.split("-")[1]) for group in loop.learner.batches[0].groups}
    assert len(trained) == 3
    assert flat not in trained
    outcomes = {(entry.task_id, entry.sample_index): entry.outcome for entry in read_ledger(tmp_path / "trajectories")}
    assert (outcomes[f"task-{flat}", 0], outcomes[f"task-{flat}", 1]) == ("left_out", "unscored")
    assert len(outcomes) == 10  # two of three had contrast, so two more were asked for the one missing: one is surplus
    assert list(outcomes.values()).count("trained") == 6
    assert metrics["score/unscored_frac"] == 1 / 10
    scores = [task + sample / 10 for task in trained for sample in (0, 1)]
    assert metrics["score/length_mean"] == pytest.approx(sum(scores) / 6)
    sampled = [int(task.split("-")[1]) + sample / 10 for (task, sample), outcome in outcomes.items() if outcome != "unscored"]
    assert metrics["score/sampled_mean"] == pytest.approx(sum(sampled) / 9)
    assert metrics["rollout/tokens_per_s"] == pytest.approx(10 * 3 / metrics["time/rollout_s"])


def test_too_many_without_a_score_end_the_run_before_it_learns(tmp_path: Path) -> None:
    loop = Loop(tmp_path, unscored=[(0, 0), (0, 1)], num_prompts=3)
    with pytest.raises(RaywardError, match="33% of the trajectories have no score") as caught:
        loop.run(1)
    assert "task 'task-0', sample 0 and 1 more: the judge fell asleep" in str(caught.value)
    assert loop.learner.batches == []


def test_a_request_that_failed_costs_one_trajectory(tmp_path: Path) -> None:
    loop = Loop(tmp_path, failed=[(0, 1)], num_prompts=3)
    ((_, metrics),) = loop.run(1)
    assert (metrics["rollout/failed_frac"], metrics["score/unscored_frac"]) == (pytest.approx(1 / 6), 0)
    groups = {group.group.task_id: group for group in loop.learner.batches[0].groups}
    assert [len(groups[f"task-{task}"].samples) for task in range(3)] == [1, 2, 2]
    entries = {(entry.task_id, entry.sample_index): entry for entry in read_ledger(tmp_path / "trajectories")}
    missing = entries.pop(("task-0", 1))
    assert (missing.outcome, missing.problem) == ("failed", "its request failed")
    assert {entry.outcome for entry in entries.values()} == {"trained"}
    assert loop.notes == [
        "step 0: 1 trajectories without a score are left out; first, task 'task-0', sample 1: its request failed"
    ]


def test_greedy_completions_are_written_down_and_counted(tmp_path: Path) -> None:
    """Of task 0 nothing can be judged, its greedy completion included; that of task 2 failed."""
    loop = Loop(tmp_path, with_greedy=True, unscored=[(0, 0), (0, 1)], failed=[(2, 0)], num_prompts=3, max_unscored_frac=0.6)
    ((_, metrics),) = loop.run(1)
    greedy = {entry.task_id: entry for entry in read_ledger(tmp_path / "trajectories") if entry.is_greedy}
    assert {task: entry.outcome for task, entry in greedy.items()} == {
        "task-0": "unscored",
        "task-1": "baseline",
        "task-2": "failed",
    }
    assert greedy["task-1"].reward == metrics["score/greedy_mean"] == 1.0
    assert metrics["score/unscored_frac"] == pytest.approx(3 / 9)
    assert metrics["rollout/failed_frac"] == pytest.approx(2 / 9)
    assert metrics["rollout/tokens_per_s"] == pytest.approx(7 * 3 / metrics["time/rollout_s"])  # greedy tokens are tokens, too
    assert metrics["score/sampled_mean"] == pytest.approx((1.0 + 1.1 + 2.1) / 3)
    assert loop.notes[0].startswith("step 0: 5 trajectories without a score are left out")


def test_a_method_that_compares_uses_what_is_left_of_a_group_if_that_is_two(tmp_path: Path) -> None:
    loop = Loop(tmp_path, failed=[(0, 1)], num_prompts=3, min_rewards=2)
    loop.run(1)
    assert {group.group.task_id for group in loop.learner.batches[0].groups} == {"task-1", "task-2"}
    outcomes = {(entry.task_id, entry.sample_index): entry.outcome for entry in read_ledger(tmp_path / "trajectories")}
    assert (outcomes["task-0", 0], outcomes["task-0", 1], outcomes["task-1", 0]) == ("left_out", "failed", "trained")


def test_a_prompt_of_which_every_request_failed_costs_its_group(tmp_path: Path) -> None:
    loop = Loop(tmp_path, failed=[(0, 0), (0, 1)], num_prompts=3, max_unscored_frac=0.4)
    loop.run(1)
    assert {group.group.task_id for group in loop.learner.batches[0].groups} == {"task-1", "task-2"}
    assert loop.notes[0].endswith("first, task 'task-0', sample 0 and 1 more: its request failed")


def test_requests_and_scores_that_are_missing_share_one_limit(tmp_path: Path) -> None:
    """Either share alone is below it."""
    loop = Loop(tmp_path, failed=[(0, 1)], unscored=[(1, 1)], num_prompts=3)
    with pytest.raises(RaywardError, match="33% of the trajectories.*correct the generator and the scorer") as caught:
        loop.run(1)
    assert "task 'task-0', sample 1: its request failed" in str(caught.value)
    assert loop.learner.batches == []


def test_a_step_with_nothing_to_learn_from_ends_the_run_whatever_the_limit(tmp_path: Path) -> None:
    failed = [(task, sample) for task in range(3) for sample in range(2)]
    loop = Loop(tmp_path, failed=failed, num_prompts=3, max_unscored_frac=1.0)
    with pytest.raises(RaywardError, match="100% .* no group has enough scores.*correct the generator") as caught:
        loop.run(1)
    assert str(caught.value).count("its request failed") == 1  # once, however many met it
    assert loop.learner.batches == []


def test_a_resumed_run_writes_down_the_failures_of_the_run_that_never_stopped(tmp_path: Path) -> None:
    failed = [(0, 1), (4, 0)]
    Loop(tmp_path / "clean", failed=failed, max_unscored_frac=0.5).run(4)
    Loop(tmp_path / "resumed", failed=failed, max_unscored_frac=0.5).run(3)
    Loop(tmp_path / "resumed", failed=failed, max_unscored_frac=0.5, num_steps_saved=2).run(4)
    assert list(read_ledger(tmp_path / "clean" / "trajectories")) == list(read_ledger(tmp_path / "resumed" / "trajectories"))


def test_numbers_that_stay_bad_end_the_run_and_keep_the_batch(tmp_path: Path) -> None:
    loop = Loop(tmp_path, skips=True)
    with pytest.raises(RaywardError, match="not finite in 6 optimizer steps in a row"):
        loop.run(9)
    assert [batch.step for batch in loop.learner.batches] == [0, 1, 2]  # two optimizer steps each; five is the limit
    assert {entry.step for entry in read_ledger(tmp_path / "failed_batches")} == {2}
    assert {entry.step for entry in read_ledger(tmp_path / "trajectories")} == {0, 1}


def test_a_checkpoint_is_written_every_so_often_and_after_the_last_step(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    loop.run(5)
    assert [call for call in loop.calls if call.startswith("save")] == ["save after 2", "save after 4", "save after 5"]


def test_the_batch_does_not_depend_on_who_was_faster(tmp_path: Path) -> None:
    in_order, reversed_order = Loop(tmp_path / "a"), Loop(tmp_path / "b", last_first=True)
    in_order.run(2)
    reversed_order.run(2)
    assert in_order.learner.batches == reversed_order.learner.batches
    arrived = [group.group.task_id for group in in_order.learner.batches[0].groups]
    asked = PromptSchedule([prompt(index) for index in range(6)], prompts_per_step=3, seed=1).prompts_of(0)
    assert arrived == [each.task.task_id for each in asked]


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
    tasks = [int(group.task_id.split("-")[1]) for group in first_groups(tmp_path)]
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
    assert [entry.stretches for entry in entries] == [[[3, 0]]] * 6 + [[[3, 2]]] * 6
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "stage" not in line] == [0, 1]
    assert all(line["policy/loss"] == 0.5 for line in lines if "stage" not in line)


def test_a_run_goes_past_the_end_of_an_epoch_that_steps_do_not_tile(tmp_path: Path) -> None:
    # The ledger refuses a prompt that is twice in a step.
    assert len(Loop(tmp_path, num_prompts=4).run(8)) == 8
