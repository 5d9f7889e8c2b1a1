"""Trajectories with a given text."""

import ctypes
from collections.abc import Callable, Iterator

import pytest

from actors.user_code.separate_user import PR_SET_DUMPABLE
from cluster.messages import Message
from cluster.types import Prompt, Task, Trajectory
from tests.records import completion


@pytest.fixture(autouse=True)
def _readable_again() -> Iterator[None]:
    """A parent of a child hides from its own user; other tests look at the stacks of this process."""
    yield
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)


@pytest.fixture
def judged() -> Callable[..., Trajectory]:
    """A trajectory from the text of its completion; keyword arguments: reference, task_id, prompt, sample_index."""

    def build(
        text: str, *, reference: str = "", task_id: str = "t/1", prompt: str = "Say it. ", sample_index: int = 0
    ) -> Trajectory:
        task = Task(task_id=task_id, messages=(Message(role="user", content=prompt),), reference=reference)
        prompt_record = Prompt(task=task, text=prompt, token_ids=(5,))
        return Trajectory(prompt=prompt_record, sample_index=sample_index, completion=completion(7, text=text))

    return build
