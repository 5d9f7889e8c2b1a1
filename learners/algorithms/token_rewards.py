"""Rewards per token: scores of completions and of their steps, and a KL penalty.

Shapes: B trajectories, T completion tokens, right-padded. Source: Ziegler et al. 2019, arXiv:1909.08593, eq. 2; rewards of single
steps: Lightman et al. 2023, arXiv:2305.20050.
"""

import torch
from torch import Tensor

from learners.algorithms.kl import k1


def token_rewards(
    logprobs_BT: Tensor, ref_logprobs_BT: Tensor, scores_B: Tensor, step_scores_BT: Tensor, mask_BT: Tensor, *, kl_coef: float
) -> Tensor:
    """rewards_BT: -kl_coef * k1 and the step's score at every valid token, plus the completion's at the last; 0 where masked."""
    penalties_BT = -kl_coef * k1(logprobs_BT, ref_logprobs_BT)
    ends_BT = torch.where(last_valid(mask_BT), scores_B.unsqueeze(1), 0.0)
    return torch.where(mask_BT, penalties_BT + step_scores_BT, 0.0) + ends_BT


def last_valid(mask_BT: Tensor) -> Tensor:
    """True at the last valid token of each row that has one."""
    num_valid_from_here_BT = mask_BT.long().flip(1).cumsum(1).flip(1)
    return mask_BT & (num_valid_from_here_BT == 1)
