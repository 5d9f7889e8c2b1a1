"""Generalised advantage estimation over tokens: every token is judged by what the critic learns after it.

Shapes: B trajectories, T completion tokens, right-padded. Rewards, values and results share one unit: score points.
values_BT[:, t] is the critic's estimate before token t is chosen. Source: arXiv:1506.02438, eq. 16-18.
"""

import torch
from torch import Tensor


def gae(
    rewards_BT: Tensor, values_BT: Tensor, bootstrap_values_B: Tensor, mask_BT: Tensor, *, gamma: float, gae_lambda: float
) -> Tensor:
    """advantages_BT, zero where masked; with `values_BT` added they are the returns that a critic learns.

    Masked tokens are stepped over, neither terminal nor discounting. `bootstrap_values_B` is the value of the state after
    the last token: 0 for a completion that ended by itself, the critic's estimate for one that was cut.
    """
    advantages_BT = torch.zeros_like(rewards_BT)
    later_advantage_B = torch.zeros_like(bootstrap_values_B)
    later_value_B = bootstrap_values_B
    for t in range(rewards_BT.shape[1] - 1, -1, -1):
        valid_B = mask_BT[:, t]
        surprise_B = rewards_BT[:, t] + gamma * later_value_B - values_BT[:, t]
        later_advantage_B = torch.where(valid_B, surprise_B + gamma * gae_lambda * later_advantage_B, later_advantage_B)
        later_value_B = torch.where(valid_B, values_BT[:, t], later_value_B)
        advantages_BT[:, t] = torch.where(valid_B, later_advantage_B, 0.0)
    return advantages_BT
