"""Correction for rollouts that were sampled by an engine whose numbers differ from the learner's.

Shapes: B trajectories, T completion tokens. Source: Ionides 2008, "Truncated Importance Sampling", J. Comput. Graph. Stat. 17(2).
"""

import torch
from torch import Tensor

from learners.algorithms.kl import k3
from learners.algorithms.masking import masked_mean


def truncated_importance_weights(old_logprobs_BT: Tensor, rollout_logprobs_BT: Tensor, mask_BT: Tensor, *, cap: float) -> Tensor:
    """min(exp(old - rollout), cap) per token, without gradient; 1 where masked."""
    log_ratio_BT = torch.where(mask_BT, old_logprobs_BT - rollout_logprobs_BT, 0.0).detach()
    return log_ratio_BT.exp().clamp(max=cap)


def mismatch_metrics(
    old_logprobs_BT: Tensor, rollout_logprobs_BT: Tensor, mask_BT: Tensor, *, cap: float, num_tokens: int
) -> dict[str, Tensor]:
    """How far the learner is from the engine: KL(engine || learner) by k3, mean |difference| in nats, share above the cap."""
    difference_BT = old_logprobs_BT - rollout_logprobs_BT
    return {
        "policy/mismatch_kl": masked_mean(k3(rollout_logprobs_BT, old_logprobs_BT), mask_BT, count=num_tokens),
        "policy/mismatch_abs_mean": masked_mean(difference_BT.abs(), mask_BT, count=num_tokens),
        "policy/mismatch_capped_frac": masked_mean((difference_BT.exp() > cap).float(), mask_BT, count=num_tokens),
    }
