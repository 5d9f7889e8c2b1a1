"""The distance to the reference as a loss, in place of a penalty among the rewards.

Shapes: B trajectories, T completion tokens; nats. Sources: J. Schulman, "Approximating KL Divergence" (2020); on which of them
has the gradient of the KL: Tang and Munos 2025, arXiv:2506.09477.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from learners.algorithms.aggregation import LossTokens
from learners.algorithms.loss_output import LossOutput

Estimator = Callable[[Tensor, Tensor], Tensor]  # (logprobs, ref_logprobs) -> nats, of the same shape


def kl_penalty_loss(logprobs_BT: Tensor, ref_logprobs_BT: Tensor, tokens: LossTokens, *, estimator: Estimator) -> LossOutput:
    """KL(policy || reference) of each token by `kl.k2`, whose gradient is that of the KL on fresh samples, or `kl.k3`.

    The gradient of `kl.k1` is zero on average, whatever the distance: it is of no use here.
    """
    mask_BT = tokens.mask_BT
    kl_BT = estimator(torch.where(mask_BT, logprobs_BT, 0.0), torch.where(mask_BT, ref_logprobs_BT, 0.0))
    return LossOutput(loss=tokens.loss(kl_BT), metrics={"policy/kl_penalty": tokens.mean(kl_BT)})
