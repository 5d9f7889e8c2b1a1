"""Rewards per token from one score per completion and a KL penalty.

Shapes: B trajectories, T completion tokens, right-padded. Source: Ziegler et al. 2019, arXiv:1909.08593, eq. 2.
"""

import torch
from torch import Tensor

from learners.algorithms.kl import k1


def token_rewards(logprobs_BT: Tensor, ref_logprobs_BT: Tensor, scores_B: Tensor, mask_BT: Tensor, *, kl_coef: float) -> Tensor:
    """rewards_BT: -kl_coef * k1 at every valid token, plus the score at the last one; zero where masked."""
    penalties_BT = torch.where(mask_BT, -kl_coef * k1(logprobs_BT, ref_logprobs_BT), 0.0)
    return penalties_BT + torch.where(last_valid(mask_BT), scores_B.unsqueeze(1), 0.0)


def last_valid(mask_BT: Tensor) -> Tensor:
    """True at the last valid token of each row that has one."""
    num_valid_from_here_BT = mask_BT.long().flip(1).cumsum(1).flip(1)
    return mask_BT & (num_valid_from_here_BT == 1)
