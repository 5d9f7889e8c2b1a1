"""Per-token estimators of KL(policy || reference) from one sampled token, in nats.

x = log policy - log reference, of a token drawn from the policy. k1 and k3 are unbiased; k3 is never negative;
k2 is biased but its gradient is that of the KL. Source: J. Schulman, "Approximating KL Divergence" (2020).
"""

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0  # exp of more overflows half precision and says nothing new


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """x. The one to use inside a reward."""
    return logprobs - ref_logprobs


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """x^2 / 2. The one to use as a loss."""
    return (logprobs - ref_logprobs).square() / 2


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """exp(-x) - 1 + x, with x limited to where exp(-x) is finite. The one to report: low variance, no negative values."""
    log_ratio = (ref_logprobs - logprobs).clamp(max=MAX_LOG_RATIO)
    return torch.expm1(log_ratio) - log_ratio


def log_ratio(logprobs_BT: Tensor, old_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """log(policy / old policy) of each token, limited to what exp bears; 0 where masked."""
    return torch.where(mask_BT, logprobs_BT - old_logprobs_BT, 0.0).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
