"""Reductions over the tokens that count.

Shapes: any; a mask has the shape of its tensor and is True where an entry counts. Entries outside it may hold
anything, NaN included. Counts are passed in, so that parts of a batch can be added up.
"""

import torch
from torch import Tensor

MIN_VARIANCE = 1e-8  # keeps a batch of equal values at zero instead of NaN


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of the entries inside the mask."""
    return torch.where(mask, values, 0.0).sum()


def masked_mean(values: Tensor, mask: Tensor, *, count: int) -> Tensor:
    """Share of this part in the mean of a whole with `count` entries; the shares of all parts add up to that mean."""
    return masked_sum(values, mask) / count


def masked_variance(values: Tensor, mask: Tensor, *, count: int) -> Tensor:
    """Population variance of a whole that is given at once."""
    mean = masked_mean(values, mask, count=count)
    return masked_mean((values - mean).square(), mask, count=count)


def row_mean(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean of each row inside the mask; 0 for a row without an entry."""
    return torch.where(mask_BT, values_BT, 0.0).sum(1) / mask_BT.sum(1).clamp(min=1)


def row_sum(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Sum of each row inside the mask."""
    return torch.where(mask_BT, values_BT, 0.0).sum(1)


def on_tokens(values_B: Tensor, mask_BT: Tensor) -> Tensor:
    """Each row's value on all its entries inside the mask; 0 outside."""
    return torch.where(mask_BT, values_B.unsqueeze(1), 0.0)


def whiten(values: Tensor, mask: Tensor, *, count: int, keep_mean: bool = False) -> Tensor:
    """Scale to population variance 1 inside the mask, and shift to mean 0 unless it is to be kept; 0 outside.

    Needs the whole batch, not a shard.
    """
    mean = masked_mean(values, mask, count=count)
    variance = masked_variance(values, mask, count=count)
    shift = mean if keep_mean else torch.zeros_like(mean)
    return torch.where(mask, (values - mean) * torch.rsqrt(variance + MIN_VARIANCE) + shift, 0.0)
