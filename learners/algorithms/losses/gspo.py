"""Group sequence policy optimisation: the ratio of whole completions, per token, is what is clipped.

Shapes: B trajectories, T completion tokens. Source: Zheng et al. 2025, "Group Sequence Policy Optimization",
arXiv:2507.18071, eq. 5-7. Its mean over completions is `aggregation.sequence_mean`.
"""

import torch
from torch import Tensor

from learners.algorithms.aggregation import LossTokens
from learners.algorithms.kl import log_ratio
from learners.algorithms.loss_output import LossOutput
from learners.algorithms.masking import row_mean


def gspo_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    importance_weights_BT: Tensor,
    tokens: LossTokens,
    *,
    clip_eps: float,
    clip_eps_high: float,
) -> LossOutput:
    """-min(s * A, clip(s) * A) with s = (pi(completion) / pi_old(completion)) ^ (1 / length), the geometric mean of ratios."""
    ratio_B1 = row_mean(log_ratio(logprobs_BT, old_logprobs_BT, tokens.mask_BT), tokens.mask_BT).exp().unsqueeze(1)
    limited_B1 = ratio_B1.clamp(1 - clip_eps, 1 + clip_eps_high)
    # A ratio reaches all tokens of its completion, and so would whatever stands where a token is masked.
    weighted_BT = torch.where(tokens.mask_BT, importance_weights_BT * advantages_BT, 0.0)
    objective_BT = torch.minimum(ratio_B1 * weighted_BT, limited_B1 * weighted_BT)
    metrics = {"policy/clip_frac": tokens.mean((ratio_B1 != limited_B1).float().expand_as(advantages_BT))}
    return LossOutput(loss=-tokens.loss(objective_BT), metrics=metrics)
