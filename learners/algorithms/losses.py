"""Losses of proximal policy optimisation.

Shapes: B trajectories, T completion tokens. `num_tokens` counts the valid tokens of the whole optimizer step, over all
micro-batches and ranks, so that the parts' losses and metrics ADD UP to the whole batch's.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from learners.algorithms.kl import MAX_LOG_RATIO, k3
from learners.algorithms.masking import masked_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutput:
    """One loss. Produced by the functions below, consumed by the learner's update."""

    loss: Tensor  # scalar with gradient; this part's share
    metrics: dict[str, Tensor]  # scalars without gradient; this part's share


def clipped_policy_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    importance_weights_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip_eps: float,
    num_tokens: int,
) -> LossOutput:
    """-min(ratio * A, clip(ratio) * A), each token weighted after clipping. Source: arXiv:1707.06347, eq. 7."""
    log_ratio_BT = torch.where(mask_BT, logprobs_BT - old_logprobs_BT, 0.0).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio_BT = log_ratio_BT.exp()
    limited_BT = ratio_BT.clamp(1 - clip_eps, 1 + clip_eps)
    objective_BT = importance_weights_BT * torch.minimum(ratio_BT * advantages_BT, limited_BT * advantages_BT)
    with torch.no_grad():
        metrics = {
            "policy/clip_frac": masked_mean((ratio_BT != limited_BT).float(), mask_BT, count=num_tokens),
            "policy/approx_kl": masked_mean(k3(old_logprobs_BT, logprobs_BT), mask_BT, count=num_tokens),
        }
    return LossOutput(loss=-masked_mean(objective_BT, mask_BT, count=num_tokens), metrics=metrics)


def clipped_value_loss(
    values_BT: Tensor, old_values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, *, clip_eps: float, num_tokens: int
) -> LossOutput:
    """max((V - R)^2, (V_limited - R)^2) / 2 with V within `clip_eps` of the old values. Source: arXiv:1909.08593, its code."""
    limited_BT = torch.maximum(torch.minimum(values_BT, old_values_BT + clip_eps), old_values_BT - clip_eps)
    error_BT = torch.where(mask_BT, values_BT - returns_BT, 0.0).square()
    limited_error_BT = torch.where(mask_BT, limited_BT - returns_BT, 0.0).square()
    with torch.no_grad():
        metrics = {"value/clip_frac": masked_mean((limited_error_BT > error_BT).float(), mask_BT, count=num_tokens)}
    loss = masked_mean(torch.maximum(error_BT, limited_error_BT), mask_BT, count=num_tokens) / 2
    return LossOutput(loss=loss, metrics=metrics)


def entropy_loss(entropy_BT: Tensor, mask_BT: Tensor, *, num_tokens: int) -> LossOutput:
    """Negative mean entropy, in nats: minimising it keeps the policy exploring."""
    mean = masked_mean(entropy_BT, mask_BT, count=num_tokens)
    return LossOutput(loss=-mean, metrics={"policy/entropy": mean.detach()})
