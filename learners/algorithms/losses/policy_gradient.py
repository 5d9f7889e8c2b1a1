"""The plain policy gradient: no ratio and no clipping, for one optimizer step a batch.

Shapes: B trajectories, T completion tokens. Source: Williams 1992, "Simple Statistical Gradient-Following Algorithms", Machine
Learning 8, theorem 1.
"""

import torch
from torch import Tensor

from learners.algorithms.aggregation import LossTokens
from learners.algorithms.loss_output import LossOutput


def policy_gradient_loss(
    logprobs_BT: Tensor, old_logprobs_BT: Tensor, advantages_BT: Tensor, importance_weights_BT: Tensor, tokens: LossTokens
) -> LossOutput:
    """-A * log pi."""
    objective_BT = importance_weights_BT * advantages_BT * torch.where(tokens.mask_BT, logprobs_BT, 0.0)
    metrics = {"policy/clip_frac": torch.zeros((), device=logprobs_BT.device)}
    return LossOutput(loss=-tokens.loss(objective_BT), metrics=metrics)
