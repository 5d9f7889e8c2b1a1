"""Which prompts a step asks: each once an epoch, and by the step alone."""

import pytest

from cluster.errors import ConfigError
from cluster.messages import Message
from cluster.types import Prompt, Task
from learners.steps.prompt_schedule import PromptSchedule


def prompt(index: int) -> Prompt:
    task = Task(task_id=f"task-{index}", messages=(Message(role="user", content="go"),))
    return Prompt(task=task, text=f"go {index}", token_ids=(index + 1,))


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
