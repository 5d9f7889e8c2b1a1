"""Reward functions that go wrong, for runs under test."""

import hashlib
import os
import time

from cluster.types import Trajectory

KINDS = ("raises", "hangs", "none", "nan", "dies")
ONE_IN = 12  # tasks
KIND_BYTE = 4  # of the hash of a task; with this one, the prompts of 24 steps bring every kind


def is_bad(task_id: str) -> bool:
    """Whether `length_or_worse` goes wrong on the task."""
    return _digest(task_id)[0] % ONE_IN == 0


def length_or_worse(trajectory: Trajectory) -> float | None:
    """The length of the completion; on bad tasks one of five ways to have no score."""
    task_id = trajectory.prompt.task.task_id
    if is_bad(task_id):
        match KINDS[_digest(task_id)[KIND_BYTE] % len(KINDS)]:
            case "raises":
                raise ValueError("no opinion")
            case "hangs":
                time.sleep(600)
            case "none":
                return None
            case "nan":
                return float("nan")
            case "dies":
                os._exit(3)
    return float(len(trajectory.completion.token_ids))


def huge(trajectory: Trajectory) -> float:
    """A number whose square is more than a float32 holds."""
    return 1e30 if trajectory.sample_index else -1e30


def _digest(task_id: str) -> bytes:
    return hashlib.sha256(task_id.encode()).digest()


def slow(trajectory: Trajectory) -> float:
    """The length of the completion, after a while."""
    time.sleep(1.0)
    return float(len(trajectory.completion.token_ids))
