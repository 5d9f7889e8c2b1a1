"""Batches of random tokens, for measurements of learners."""

from collections.abc import Sequence

import numpy as np

from cluster.messages import Message
from cluster.types import Prompt, Reward, ScoredBatch, ScoredGroup, Task
from tests.records import completion, group_of


def random_batch(step: int, *, lengths: Sequence[int]) -> ScoredBatch:
    """`lengths`: of each trajectory, half of it prompt and half completion, in tokens that every model knows."""
    generator = np.random.default_rng(step)
    groups = []
    for index, length in enumerate(lengths):
        prompt_ids, completion_ids = (generator.integers(10, 250, size).tolist() for size in (length - length // 2, length // 2))
        task = Task(task_id=str(index), messages=(Message(role="user", content="text"),))
        prompt = Prompt(task=task, text="text", token_ids=tuple(prompt_ids))
        group = group_of(prompt, {0: completion(*completion_ids)}, logprob=-9.0)
        groups.append(ScoredGroup(group=group, rewards=(Reward(total=float(generator.normal()), breakdown={}),)))
    return ScoredBatch(step=step, groups=tuple(groups))
