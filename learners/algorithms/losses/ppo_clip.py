"""The clipped surrogate of PPO, with its two later amendments.

Shapes: B trajectories, T completion tokens. Sources: Schulman et al. 2017, arXiv:1707.06347, eq. 7; an upper bound of its own
(clip-higher): DAPO, arXiv:2503.14476, section 3.1; a floor for bad tokens (dual clip): Ye et al. 2019, arXiv:1912.09729, eq. 5.
"""

import math

import torch
from torch import Tensor

from learners.algorithms.aggregation import LossTokens
from learners.algorithms.kl import log_ratio
from learners.algorithms.loss_output import LossOutput


def ppo_clip_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    importance_weights_BT: Tensor,
    tokens: LossTokens,
    *,
    clip_eps: float,
    clip_eps_high: float,
    dual_clip: float = math.inf,
) -> LossOutput:
    """-min(ratio * A, clip(ratio, 1 - clip_eps, 1 + clip_eps_high) * A), and where A < 0 at most -dual_clip * A."""
    ratio_BT = log_ratio(logprobs_BT, old_logprobs_BT, tokens.mask_BT).exp()
    limited_BT = ratio_BT.clamp(1 - clip_eps, 1 + clip_eps_high)
    clipped_BT = torch.minimum(ratio_BT * advantages_BT, limited_BT * advantages_BT)
    floor_BT = torch.where(advantages_BT < 0, dual_clip * advantages_BT, -math.inf)
    objective_BT = importance_weights_BT * torch.maximum(clipped_BT, floor_BT)
    metrics = {"policy/clip_frac": tokens.mean((ratio_BT != limited_BT).float())}
    return LossOutput(loss=-tokens.loss(objective_BT), metrics=metrics)
