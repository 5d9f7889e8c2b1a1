"""What the policy is asked. Each kind of task is one file here and one entry of `TASK_SET_BUILDERS`."""

from collections.abc import Callable
from typing import Any

from actors.config import TaskConfig
from actors.tasks import arithmetic, gsm8k, ifeval, jsonl, movie_reviews, reasoning_gym
from actors.tasks.task_set import TaskSet

TASK_SET_BUILDERS: dict[str, Callable[[Any], tuple[TaskSet, TaskSet]]] = {
    "movie_reviews": movie_reviews.build_task_sets,
    "jsonl": jsonl.build_task_sets,
    "gsm8k": gsm8k.build_task_sets,
    "ifeval": ifeval.build_task_sets,
    "arithmetic": arithmetic.build_task_sets,
    "reasoning_gym": reasoning_gym.build_task_sets,
}


def build_task_sets(config: TaskConfig) -> tuple[TaskSet, TaskSet]:
    """Return (train, held_out): the same tasks in the same order every time, and no prompt in both."""
    return TASK_SET_BUILDERS[config.kind](config)
