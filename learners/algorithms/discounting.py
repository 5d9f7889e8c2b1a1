"""Discounted sums over the tokens that count, by matrix products: a GPU would spend its time on starting one kernel a token.

Shapes: B trajectories, T tokens, K tokens of a block.
"""

import torch
from torch import Tensor

BLOCK_TOKENS = 128  # summed by one product


def discounted_sums(terms_BT: Tensor, mask_BT: Tensor, *, discount: float) -> Tensor:
    """At each token: its term and those of later tokens, each times `discount` once for every token that counts in between.

    Zero where masked; what stands there is stepped over, whatever it is.
    """
    order_BT = side_by_side(mask_BT)
    ordered_BT = torch.where(mask_BT, terms_BT, 0.0).gather(1, order_BT)
    sums_BT = torch.zeros_like(terms_BT).scatter(1, order_BT, _sums_without_gaps(ordered_BT, discount))
    return torch.where(mask_BT, sums_BT, 0.0)


def next_values(values_BT: Tensor, mask_BT: Tensor, last_values_B: Tensor) -> Tensor:
    """At each token that counts: the value at the next one that does, and at the last of them `last_values_B`."""
    order_BT = side_by_side(mask_BT)
    ordered_BT = values_BT.gather(1, order_BT)
    return torch.zeros_like(values_BT).scatter(1, order_BT, torch.cat([ordered_BT[:, 1:], last_values_B[:, None]], dim=1))


def side_by_side(mask_BT: Tensor) -> Tensor:
    """Places of the tokens, so ordered that those that count stand at the end of their row, as they came."""
    return mask_BT.to(torch.uint8).argsort(dim=1, stable=True)


def _sums_without_gaps(terms_BT: Tensor, discount: float) -> Tensor:
    """Block after block, from the end."""
    size = min(BLOCK_TOKENS, terms_BT.shape[1])
    places_K = torch.arange(size + 1, device=terms_BT.device)
    powers_K = torch.full((1,), discount, dtype=terms_BT.dtype, device=terms_BT.device) ** places_K
    distance_KK = places_K[:size, None] - places_K[:size]
    weights_KK = torch.where(distance_KK >= 0, powers_K[distance_KK.clamp(min=0)], 0.0)  # of term s in sum t
    later_B = torch.zeros_like(terms_BT[:, 0])
    blocks = []
    for block_BK in reversed(terms_BT.split(size, dim=1)):
        num_tokens = block_BK.shape[1]
        sums_BK = block_BK @ weights_KK[:num_tokens, :num_tokens] + later_B[:, None] * powers_K[1 : num_tokens + 1].flip(0)
        later_B = sums_BK[:, 0]
        blocks.append(sums_BK)
    return torch.cat(blocks[::-1], dim=1)
