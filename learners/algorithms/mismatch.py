"""Correction for rollouts that were sampled by other weights, or by an engine whose numbers differ from the learner's.

Shapes: B trajectories, T completion tokens. Three policies meet here: the one that sampled (rollout), the learner's at batch
start (old, "proximal") and the one being updated. Losses compare the last two; what these functions return, without gradient,
carries from the first to the second. Weights of tokens and of sequences: truncated importance sampling, Ionides 2008, J. Comput.
Graph. Stat. 17(2); masked: IcePop, Ling team 2025, arXiv:2510.18855; the split into three policies: decoupled PPO, Hilton et al.
2021, arXiv:2110.00641, and AReaL, arXiv:2505.24298, section 5.2.
"""

import torch
from torch import Tensor

from learners.algorithms.kl import k3, log_ratio
from learners.algorithms.masking import masked_mean, on_tokens, row_mean, row_sum


def truncated_token_weights(old_logprobs_BT: Tensor, rollout_logprobs_BT: Tensor, mask_BT: Tensor, *, cap: float) -> Tensor:
    """min(exp(old - rollout), cap) per token; 1 where masked. A cap of infinity leaves the decoupled objective unbiased."""
    return _ratio(old_logprobs_BT, rollout_logprobs_BT, mask_BT).clamp(max=cap)


def truncated_sequence_weights(old_logprobs_BT: Tensor, rollout_logprobs_BT: Tensor, mask_BT: Tensor, *, cap: float) -> Tensor:
    """min(exp(sum of old - rollout), cap) of a completion, on each of its tokens; 0 where masked."""
    log_ratio_BT = log_ratio(old_logprobs_BT, rollout_logprobs_BT, mask_BT).detach()
    return on_tokens(row_sum(log_ratio_BT, mask_BT).exp().clamp(max=cap), mask_BT)


def masked_token_weights(
    old_logprobs_BT: Tensor, rollout_logprobs_BT: Tensor, mask_BT: Tensor, *, lowest: float, highest: float
) -> Tensor:
    """exp(old - rollout) per token where that lies within the band, 0 where it does not; 1 where masked."""
    ratio_BT = _ratio(old_logprobs_BT, rollout_logprobs_BT, mask_BT)
    return torch.where((ratio_BT >= lowest) & (ratio_BT <= highest), ratio_BT, 0.0)


def kept_sequences(
    old_logprobs_BT: Tensor, rollout_logprobs_BT: Tensor, mask_BT: Tensor, *, lowest: float, highest: float
) -> Tensor:
    """kept_B, bool: whether the geometric mean of a completion's ratios lies within the band.

    Rejected completions stay in every count, so that the others do not weigh more for it.
    """
    ratio_B = row_mean(log_ratio(old_logprobs_BT, rollout_logprobs_BT, mask_BT).detach(), mask_BT).exp()
    return (ratio_B >= lowest) & (ratio_B <= highest)


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


def _ratio(old_logprobs_BT: Tensor, rollout_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return log_ratio(old_logprobs_BT, rollout_logprobs_BT, mask_BT).detach().exp()
