"""The critic's regression onto returns.

Shapes: B trajectories, T completion tokens; values and returns share one unit. Source: Ziegler et al. 2019, arXiv:1909.08593,
its code.
"""

import torch
from torch import Tensor

from learners.algorithms.aggregation import LossTokens
from learners.algorithms.loss_output import LossOutput


def clipped_value_loss(
    values_BT: Tensor, old_values_BT: Tensor, returns_BT: Tensor, tokens: LossTokens, *, clip_eps: float
) -> LossOutput:
    """max((V - R)^2, (V_limited - R)^2) / 2 with V within `clip_eps` of the old values; infinity clips nothing."""
    limited_BT = torch.maximum(torch.minimum(values_BT, old_values_BT + clip_eps), old_values_BT - clip_eps)
    error_BT = torch.where(tokens.mask_BT, values_BT - returns_BT, 0.0).square()
    limited_error_BT = torch.where(tokens.mask_BT, limited_BT - returns_BT, 0.0).square()
    metrics = {"value/clip_frac": tokens.mean((limited_error_BT > error_BT).float())}
    return LossOutput(loss=tokens.loss(torch.maximum(error_BT, limited_error_BT)) / 2, metrics=metrics)
