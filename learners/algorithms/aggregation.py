"""How much each token counts in a loss.

Shapes: B trajectories of one part (a micro-batch of one rank), T completion tokens. Counts are those of the whole optimizer
step, over all micro-batches and ranks: so the losses and metrics of its parts ADD UP to those of the whole.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from learners.algorithms.masking import masked_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTokens:
    """Which tokens of a part count, and how much. Produced by the functions below, consumed by losses."""

    mask_BT: Tensor  # bool
    weights_BT: Tensor  # share of each token in the loss of the whole step; 0 where masked
    num_tokens: int  # valid tokens of the whole step; metrics are means over them

    def loss(self, losses_BT: Tensor) -> Tensor:
        """This part's share of the loss. What is masked may hold anything."""
        return (torch.where(self.mask_BT, losses_BT, 0.0) * self.weights_BT).sum()

    def mean(self, values_BT: Tensor) -> Tensor:
        """This part's share of a mean over tokens, without gradient."""
        return masked_mean(values_BT.detach(), self.mask_BT, count=self.num_tokens)


def token_mean(mask_BT: Tensor, *, num_tokens: int) -> LossTokens:
    """Every token counts the same, so a long completion counts more. Source: DAPO, arXiv:2503.14476, eq. 12."""
    return LossTokens(mask_BT=mask_BT, weights_BT=mask_BT / num_tokens, num_tokens=num_tokens)


def sequence_mean(mask_BT: Tensor, *, num_tokens: int, num_trajectories: int) -> LossTokens:
    """Every completion counts the same, so a token of a long one counts less. Source: GRPO, arXiv:2402.03300, eq. 3."""
    lengths_B1 = mask_BT.sum(1, keepdim=True).clamp(min=1)
    return LossTokens(mask_BT=mask_BT, weights_BT=mask_BT / lengths_B1 / num_trajectories, num_tokens=num_tokens)


def constant_length(mask_BT: Tensor, *, num_tokens: int, num_trajectories: int, max_tokens: int) -> LossTokens:
    """Every token counts 1 / `max_tokens` of a completion, whatever its length. Source: Dr. GRPO, arXiv:2503.20783, listing 1."""
    return LossTokens(mask_BT=mask_BT, weights_BT=mask_BT / (num_trajectories * max_tokens), num_tokens=num_tokens)
