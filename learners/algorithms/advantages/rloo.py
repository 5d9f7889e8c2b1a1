"""REINFORCE leave-one-out: the baseline of a trajectory is the mean return of its siblings, which it has no part in.

Shapes: B trajectories. Source: Ahmadian et al. 2024, "Back to Basics", arXiv:2402.14740, eq. 7; Kool et al. 2019.
"""

import torch
from torch import Tensor

from learners.algorithms.groups import group_mean, group_size, has_contrast


def rloo(returns_B: Tensor, group_B: Tensor) -> Tensor:
    """advantages_B = return - mean of the others = (return - group mean) * n / (n - 1); exactly 0 without contrast.

    Unbiased. Groups must hold at least two trajectories.
    """
    size_B = group_size(group_B)
    centred_B = returns_B - group_mean(returns_B, group_B)
    return torch.where(has_contrast(returns_B, group_B), centred_B * size_B / (size_B - 1).clamp(min=1), 0.0)
