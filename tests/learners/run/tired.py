"""A reward function that fails after a while."""

import itertools

from cluster.types import Trajectory

NUM_JUDGED_WELL = 40  # the completions of one evaluation
count = itertools.count(1)


def judge(trajectory: Trajectory) -> float:
    if next(count) > NUM_JUDGED_WELL:
        raise RuntimeError("too tired")
    return 1.0
