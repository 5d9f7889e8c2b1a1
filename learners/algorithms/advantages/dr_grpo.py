"""GRPO done right: the group mean as baseline, and no division by the group's spread, which favours easy and hard prompts.

Shapes: B trajectories. Source: Liu et al. 2025, "Understanding R1-Zero-Like Training", arXiv:2503.20783, section 3.2. Its other
half, a constant length in place of each completion's own, is `aggregation.constant_length`. With whitening over the batch this
is the advantage of REINFORCE++-baseline: Hu et al. 2025, arXiv:2501.03262, section 3.3.
"""

import torch
from torch import Tensor

from learners.algorithms.groups import group_mean, has_contrast


def dr_grpo(returns_B: Tensor, group_B: Tensor) -> Tensor:
    """advantages_B = return - group mean; exactly 0 in a group without contrast.

    The mean holds the trajectory's own return, so the expected gradient is (n - 1) / n of the true one in groups of n.
    """
    return torch.where(has_contrast(returns_B, group_B), returns_B - group_mean(returns_B, group_B), 0.0)
