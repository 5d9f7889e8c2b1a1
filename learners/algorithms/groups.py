"""Statistics over groups of trajectories, given back for each trajectory.

Shapes: B trajectories of the whole batch. `group_B` numbers the group of each, from 0.
"""

import torch
from torch import Tensor


def group_size(group_B: Tensor) -> Tensor:
    """Trajectories in the group of each."""
    return torch.bincount(group_B)[group_B]


def group_mean(values_B: Tensor, group_B: Tensor) -> Tensor:
    """Mean over the group of each trajectory."""
    sums_G = values_B.new_zeros(int(group_B.max()) + 1).index_add(0, group_B, values_B)
    return sums_G[group_B] / group_size(group_B)


def group_std(values_B: Tensor, group_B: Tensor) -> Tensor:
    """Unbiased standard deviation over the group of each trajectory; 0 in a group of one."""
    squares_B = (values_B - group_mean(values_B, group_B)).square()
    size_B = group_size(group_B)
    return (group_mean(squares_B, group_B) * size_B / (size_B - 1).clamp(min=1)).sqrt()


def has_contrast(values_B: Tensor, group_B: Tensor) -> Tensor:
    """bool: whether the group of each trajectory holds two different values. Exact, where a deviation above 0 may be rounding."""
    empty_G = values_B.new_zeros(int(group_B.max()) + 1)
    highest_G = empty_G.scatter_reduce(0, group_B, values_B, "amax", include_self=False)
    lowest_G = empty_G.scatter_reduce(0, group_B, values_B, "amin", include_self=False)
    return (highest_G > lowest_G)[group_B]
