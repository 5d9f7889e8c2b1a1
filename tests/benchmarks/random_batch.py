"""Batches of random tokens, for measurements of learners."""

import numpy as np

from cluster.messages import Message
from cluster.types import Prompt, Reward, ScoredBatch, ScoredGroup, Task
from tests.records import completion, group_of


def random_batch(step: int, *, num_trajectories: int, num_tokens: int) -> ScoredBatch:
    """`num_tokens`: of each prompt and of each completion; every model knows them."""
    generator = np.random.default_rng(step)
    groups = []
    for index in range(num_trajectories):
        prompt_ids, completion_ids = (generator.integers(10, 250, num_tokens).tolist() for _ in range(2))
        task = Task(task_id=str(index), messages=(Message(role="user", content="text"),))
        prompt = Prompt(task=task, text="text", token_ids=tuple(prompt_ids))
        group = group_of(prompt, {0: completion(*completion_ids)}, logprob=-9.0)
        groups.append(ScoredGroup(group=group, rewards=(Reward(total=float(generator.normal()), breakdown={}),)))
    return ScoredBatch(step=step, groups=tuple(groups))
