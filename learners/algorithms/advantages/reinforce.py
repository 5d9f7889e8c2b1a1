"""REINFORCE: a token is worth the rewards that follow it.

Shapes: B trajectories, T completion tokens. Source: Williams 1992, "Simple Statistical Gradient-Following Algorithms", Machine
Learning 8. With k1 penalties among the rewards and whitening over the batch this is the advantage of REINFORCE++:
Hu et al. 2025, arXiv:2501.03262, section 3.2.
"""

import torch
from torch import Tensor


def reward_to_go(rewards_BT: Tensor, mask_BT: Tensor, *, gamma: float) -> Tensor:
    """advantages_BT: this token's reward and those after it, discounted; 0 where masked. Masked tokens are stepped over."""
    advantages_BT = torch.zeros_like(rewards_BT)
    later_B = torch.zeros_like(rewards_BT[:, 0])
    for t in range(rewards_BT.shape[1] - 1, -1, -1):
        valid_B = mask_BT[:, t]
        later_B = torch.where(valid_B, rewards_BT[:, t] + gamma * later_B, later_B)
        advantages_BT[:, t] = torch.where(valid_B, later_B, 0.0)
    return advantages_BT
