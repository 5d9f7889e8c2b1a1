"""Trajectories with a given text."""

from collections.abc import Callable

import pytest

from cluster.types import Completion, Message, Prompt, Task, Trajectory


@pytest.fixture
def judged() -> Callable[..., Trajectory]:
    """A trajectory from the text of its completion; keyword arguments: reference, task_id, prompt, sample_index."""

    def build(
        text: str, *, reference: str = "", task_id: str = "t/1", prompt: str = "Say it. ", sample_index: int = 0
    ) -> Trajectory:
        task = Task(task_id=task_id, messages=(Message(role="user", content=prompt),), reference=reference)
        completion = Completion(token_ids=(7,), rollout_logprobs=(-1.0,), text=text, finish_reason="stop", policy_version=0)
        return Trajectory(prompt=Prompt(task=task, text=prompt, token_ids=(5,)), sample_index=sample_index, completion=completion)

    return build
