"""Clipped importance-sampling policy optimisation: the weight of a token is clipped, never its gradient.

Shapes: B trajectories, T completion tokens. Source: MiniMax 2025, "MiniMax-M1", arXiv:2506.13585, eq. 4-5.
"""

import torch
from torch import Tensor

from learners.algorithms.aggregation import LossTokens
from learners.algorithms.kl import log_ratio
from learners.algorithms.loss_output import LossOutput


def cispo_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    importance_weights_BT: Tensor,
    tokens: LossTokens,
    *,
    clip_eps: float,
    clip_eps_high: float,
) -> LossOutput:
    """-clip(ratio, 1 - clip_eps, 1 + clip_eps_high) * A * log pi, the clipped ratio without gradient."""
    ratio_BT = log_ratio(logprobs_BT, old_logprobs_BT, tokens.mask_BT).detach().exp()
    limited_BT = ratio_BT.clamp(1 - clip_eps, 1 + clip_eps_high)
    objective_BT = importance_weights_BT * limited_BT * advantages_BT * torch.where(tokens.mask_BT, logprobs_BT, 0.0)
    metrics = {"policy/clip_frac": tokens.mean((ratio_BT != limited_BT).float())}
    return LossOutput(loss=-tokens.loss(objective_BT), metrics=metrics)
