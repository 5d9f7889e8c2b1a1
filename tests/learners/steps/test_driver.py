"""The loop's order of work, its independence of who was faster, and the prompts it uses."""

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import RaywardError
from cluster.storage.ledger import TrajectoryLedger, read_ledger
from cluster.types import TrajectoryGroup
from learners.steps.prompt_schedule import PromptSchedule
from tests.learners.steps.recorded_loop import Loop, prompt


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


def test_what_ended_a_run_is_told_though_its_ledger_could_not_be_written_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space is left")

    of_step_1 = PromptSchedule([prompt(index) for index in range(6)], prompts_per_step=3, seed=1).prompts_of(1)
    failed = [(int(each.task.task_id.split("-")[1]), sample) for each in of_step_1 for sample in range(2)]
    loop = Loop(tmp_path, failed=failed)
    monkeypatch.setattr(TrajectoryLedger, "record", full)
    with pytest.raises(RaywardError, match="step 1: 100% of the trajectories have no score"):
        loop.run(3)
    assert loop.notes == ["the ledger lacks the newest step: no space is left"]


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
