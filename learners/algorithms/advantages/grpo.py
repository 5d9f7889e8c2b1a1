"""Group-relative policy optimisation: a trajectory is judged against its siblings, in units of their spread.

Shapes: B trajectories. Source: Shao et al. 2024, "DeepSeekMath", arXiv:2402.03300, section 4.1.2.
"""

import torch
from torch import Tensor

from learners.algorithms.groups import group_mean, group_std, has_contrast

MIN_GROUP_STD = 1e-6  # added to the deviation, so that groups of nearly equal returns stay finite


def grpo(returns_B: Tensor, group_B: Tensor) -> Tensor:
    """advantages_B = (return - group mean) / group deviation, unbiased; exactly 0 in a group without contrast."""
    centred_B = returns_B - group_mean(returns_B, group_B)
    scaled_B = centred_B / (group_std(returns_B, group_B) + MIN_GROUP_STD)
    return torch.where(has_contrast(returns_B, group_B), scaled_B, 0.0)
