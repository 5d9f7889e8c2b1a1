"""Each trajectory is in the ledger once, whole, and comes back as it was."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from cluster.errors import DataError
from cluster.messages import Message
from cluster.storage.ledger import TrajectoryLedger, audit_ledger, read_ledger
from cluster.types import Prompt, Reward, ScoredGroup, Task
from tests.records import completion, group_of, sampled


def scored_group(
    task_id: str, sample_indices: tuple[int, ...] = (0, 1), failures: Mapping[int, str] = MappingProxyType({})
) -> ScoredGroup:
    prompt = Prompt(
        task=Task(task_id=task_id, messages=(Message(role="user", content="p"),)), text="A film\u2028that", token_ids=(1,)
    )
    completions = {index: completion(5, 6, 7, text=f" is\n{index}", finish_reason="length") for index in sample_indices}
    rewards = tuple(Reward(total=0.5 * index, breakdown={"rm": 0.25 * index}) for index in sample_indices)
    return ScoredGroup(group=group_of(prompt, completions, policy_version=4, failures=failures), rewards=rewards)


def test_what_is_recorded_is_read_back(tmp_path: Path) -> None:
    TrajectoryLedger(tmp_path).record(10, sampled([scored_group("a")]))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000010.jsonl"]
    first, second = read_ledger(tmp_path)
    assert (first.sample_index, second.sample_index) == (0, 1)
    assert (second.step, second.task_id, second.stretches, second.attempt, second.outcome) == (10, "a", [[3, 4]], 1, "trained")
    assert (second.finish_reason, second.completion_tokens, second.reward, second.breakdown) == ("length", 3, 0.5, {"rm": 0.25})
    assert (second.prompt, second.completion) == ("A film\u2028that", " is\n1")


def test_an_audit_recomputes_what_was_trained_on_whatever_the_order(tmp_path: Path) -> None:
    for folder, tasks in (("one", "ab"), ("two", "ba")):
        ledger = TrajectoryLedger(tmp_path / folder)
        ledger.record(0, sampled([scored_group(task) for task in tasks], [scored_group("c")]))
        ledger.record(1, sampled([scored_group("a")]))
    one, two = (audit_ledger(tmp_path / folder) for folder in ("one", "two"))
    assert one == two
    assert (one.num_steps, one.num_trained, one.num_left_out, one.problems) == (2, 6, 2, ())
    TrajectoryLedger(tmp_path / "two").record(1, sampled([scored_group("d")]))
    assert audit_ledger(tmp_path / "two").digest != one.digest


def test_what_the_engine_failed_to_complete_is_written_down_and_is_no_version_of_the_policy(tmp_path: Path) -> None:
    ledger = TrajectoryLedger(tmp_path)
    ledger.record(
        0,
        sampled([scored_group("a", (0, 2), {1: "its request failed"})], [scored_group("b", (), {0: "it broke", 1: "it broke"})]),
    )
    entries = {(entry.task_id, entry.sample_index): entry for entry in read_ledger(tmp_path)}
    failed = entries["a", 1]
    assert (failed.outcome, failed.problem, failed.reward, failed.prompt) == (
        "failed",
        "its request failed",
        None,
        "A film\u2028that",
    )
    assert (failed.stretches, failed.finish_reason, failed.completion_tokens) == ([], None, 0)
    assert [entries["a", index].outcome for index in (0, 2)] == ["trained", "trained"]
    audit = audit_ledger(tmp_path)
    assert (audit.num_trained, audit.num_failed, audit.num_left_out, audit.problems) == (2, 3, 0, ())


def test_a_greedy_completion_is_an_entry_of_its_own_and_part_of_what_was_trained_on(tmp_path: Path) -> None:
    with_greedy, left_out = (replace(scored_group(task), greedy=scored_group(task, (0,))) for task in "ab")
    broken = replace(scored_group("c"), greedy=scored_group("c", (), {0: "its request failed"}))
    TrajectoryLedger(tmp_path / "one").record(0, sampled([with_greedy], [left_out, broken]))
    found = {(entry.task_id, entry.sample_index): entry for entry in read_ledger(tmp_path / "one") if entry.is_greedy}
    assert {key: entry.outcome for key, entry in found.items()} == {
        ("a", 0): "baseline",
        ("b", 0): "left_out",
        ("c", 0): "failed",
    }
    assert (found["a", 0].reward, found["a", 0].completion) == (0.0, " is\n0")
    audit = audit_ledger(tmp_path / "one")
    assert (audit.num_trained, audit.num_baselines, audit.num_failed, audit.num_left_out) == (2, 1, 1, 5)

    other = replace(with_greedy, greedy=replace(scored_group("a", (0,)), rewards=(Reward(total=9.0, breakdown={}),)))
    TrajectoryLedger(tmp_path / "two").record(0, sampled([other]))
    assert audit_ledger(tmp_path / "two").digest != audit.digest
    with pytest.raises(DataError, match="task 'a' greedy sample 0"):
        TrajectoryLedger(tmp_path / "two").record(
            0, sampled([replace(with_greedy, group=scored_group("a", (2,)).group, rewards=other.rewards[:1])])
        )


def test_a_line_without_newer_fields_is_read(tmp_path: Path) -> None:
    TrajectoryLedger(tmp_path).record(0, sampled([scored_group("a", (0,))]))
    (path,) = tmp_path.iterdir()
    line = json.loads(path.read_text())
    del line["is_greedy"]
    path.write_text(json.dumps(line) + "\n")
    assert [entry.is_greedy for entry in read_ledger(tmp_path)] == [False]


def test_a_failed_trajectory_is_not_part_of_what_was_trained_on(tmp_path: Path) -> None:
    TrajectoryLedger(tmp_path / "one").record(0, sampled([scored_group("a", (0, 2), {1: "its request failed"})]))
    TrajectoryLedger(tmp_path / "two").record(0, sampled([scored_group("a", (0, 2))]))
    assert audit_ledger(tmp_path / "one").digest == audit_ledger(tmp_path / "two").digest


def test_an_audit_finds_what_is_missing_and_what_is_double(tmp_path: Path) -> None:
    ledger = TrajectoryLedger(tmp_path)
    for step in (0, 2):
        ledger.record(step, sampled([scored_group("a")]))
    double = tmp_path / "step-000002.jsonl"
    double.write_text(double.read_text() * 2)
    assert audit_ledger(tmp_path).problems == (
        "step 2: task 'a' sample 0 is there twice",
        "step 2: task 'a' sample 1 is there twice",
        "step 1 is missing",
    )


def test_a_trajectory_is_refused_a_second_time_even_after_a_restart(tmp_path: Path) -> None:
    TrajectoryLedger(tmp_path).record(1, sampled([scored_group("a"), scored_group("b")]))
    before = (tmp_path / "step-000001.jsonl").read_bytes()
    with pytest.raises(DataError, match="'b' sample 1"):
        TrajectoryLedger(tmp_path).record(1, sampled([scored_group("c"), scored_group("b", (1,))]))
    assert (tmp_path / "step-000001.jsonl").read_bytes() == before


def test_a_trajectory_twice_in_one_call_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'a' sample 0"):
        TrajectoryLedger(tmp_path).record(1, sampled([scored_group("a"), scored_group("a")]))
    assert list(tmp_path.iterdir()) == []


def test_the_same_task_may_come_again_in_a_later_step_and_groups_may_arrive_one_by_one(tmp_path: Path) -> None:
    ledger = TrajectoryLedger(tmp_path)
    ledger.record(1, sampled([scored_group("a")]))
    ledger.record(1, sampled([scored_group("b")]))
    ledger.record(2, sampled([scored_group("a")]))
    assert [(entry.step, entry.task_id) for entry in read_ledger(tmp_path)] == [(1, "a")] * 2 + [(1, "b")] * 2 + [(2, "a")] * 2


def test_steps_are_read_in_order_beyond_the_padding(tmp_path: Path) -> None:
    for step in (1_000_000, 999_999, 2):
        TrajectoryLedger(tmp_path).record(step, sampled([scored_group("a", (0,))]))
    assert [entry.step for entry in read_ledger(tmp_path)] == [2, 999_999, 1_000_000]


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    TrajectoryLedger(tmp_path).record(1, sampled([scored_group("a")]))
    with (tmp_path / "step-000001.jsonl").open("a") as file:
        file.write('{"step": 1}\n')
    with pytest.raises(DataError, match=r"step-000001\.jsonl:3"):
        list(read_ledger(tmp_path))
