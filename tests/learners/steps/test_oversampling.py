"""A step that asks for more prompts than it needs, over rollouts that record what is taken back."""

from collections.abc import Generator, Sequence
from pathlib import Path

import pytest

from cluster.errors import ConfigError
from cluster.messages import Message
from cluster.storage.ledger import TrajectoryLedger, audit_ledger
from cluster.types import Prompt, SamplingParameters, Task, TrajectoryGroup
from learners.steps.oversampling import Oversampling
from learners.steps.prompt_schedule import PromptSchedule
from tests.learners.steps.recorded_loop import RecordingScoring
from tests.records import completion, group_of, sampled

SAMPLING = SamplingParameters(temperature=1.0, top_p=1.0, max_completion_tokens=4, samples_per_prompt=2, seed=5)


def _prompt(index: int) -> Prompt:
    task = Task(task_id=f"task-{index}", messages=(Message(role="user", content="go"),))
    return Prompt(task=task, text=f"go {index}", token_ids=(index + 1,))


PROMPTS = [_prompt(index) for index in range(8)]


class LateRollouts:
    """Prompts of `late` tasks are complete after all others; with nothing yet between two."""

    def __init__(self, late: Sequence[int], failed: Sequence[int] = ()) -> None:
        self._late = late
        self._failed = failed
        self.asked: list[str] = []
        self.delivered: list[str] = []
        self.was_taken_back = False

    def collect(self, prompts: Sequence[Prompt], sampling: SamplingParameters) -> Generator[TrajectoryGroup | None, None, None]:
        self.asked = [prompt.task.task_id for prompt in prompts]
        try:
            for prompt in sorted(prompts, key=lambda prompt: _number(prompt) in self._late):
                self.delivered.append(prompt.task.task_id)
                works = [index for index in range(2) if not (_number(prompt) in self._failed and index)]
                failures = {1: "its request failed"} if len(works) < 2 else {}
                yield None
                yield group_of(prompt, {index: completion(7) for index in works}, failures=failures)
        finally:
            self.was_taken_back = len(self.delivered) < len(prompts)


def _number(prompt: Prompt) -> int:
    return int(prompt.task.task_id.removeprefix("task-"))


def _oversampling(rollouts: LateRollouts, *, extra_prompts: int, min_rewards: int = 1) -> Oversampling:
    schedule = PromptSchedule(PROMPTS, prompts_per_step=3, seed=0)
    return Oversampling(rollouts, RecordingScoring(), SAMPLING, schedule, extra_prompts=extra_prompts, min_rewards=min_rewards)


def test_a_step_takes_what_is_complete_first_and_the_rest_is_taken_back() -> None:
    rollouts = LateRollouts(late=[1])
    collected = _oversampling(rollouts, extra_prompts=2).collect(0, PROMPTS[:3])
    assert rollouts.asked[:3] == ["task-0", "task-1", "task-2"]
    assert len(set(rollouts.asked)) == 5
    assert rollouts.was_taken_back
    first_extra = rollouts.asked[3]
    assert [scored.group.task_id for scored in collected.groups] == ["task-0", "task-2", first_extra]  # in the order asked
    assert [(cut.prompt.task.task_id, cut.num_samples) for cut in collected.cut] == [("task-1", 2), (rollouts.asked[4], 2)]
    assert collected.metrics == {"rollout/cut_prompts": 2.0}


def test_a_group_that_lacks_rewards_is_complete_and_left_out() -> None:
    collected = _oversampling(LateRollouts(late=[1], failed=[0]), extra_prompts=2, min_rewards=2).collect(0, PROMPTS[:3])
    assert [scored.group.task_id for scored in collected.left_out] == ["task-0"]
    assert len(collected.groups) == 2
    assert len(collected.cut) == 2


def test_what_was_cut_is_in_the_ledger(tmp_path: Path) -> None:
    collected = _oversampling(LateRollouts(late=[1]), extra_prompts=1).collect(0, PROMPTS[:3])
    ledger = TrajectoryLedger(tmp_path)
    ledger.record(0, sampled(collected.groups, collected.left_out, collected.cut))
    cut = [entry for entry in ledger.entries_of(0) if entry.outcome == "cut"]
    assert [(entry.task_id, entry.sample_index, entry.prompt) for entry in cut] == [("task-1", 0, "go 1"), ("task-1", 1, "go 1")]
    assert [(entry.completion_tokens, entry.reward, entry.stretches) for entry in cut] == [(0, None, [])] * 2
    audit = audit_ledger(tmp_path)
    assert (audit.num_trained, audit.num_cut, audit.problems) == (6, 2, ())


def test_a_task_must_have_the_prompts() -> None:
    with pytest.raises(ConfigError, match=r"extra_prompts_per_step=6 .* only 8 prompts"):
        _oversampling(LateRollouts(late=[]), extra_prompts=6)
