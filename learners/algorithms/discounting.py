"""Sums over the tokens that count, by matrix products: a GPU would spend its time on starting one kernel a token.

Shapes: B trajectories, T tokens, K tokens of a block.
"""

import torch
from torch import Tensor

BLOCK_TOKENS = 128  # summed by one product


class CountedTokens:
    """The tokens of a batch that count, side by side: what stands between them is stepped over, whatever it is."""

    def __init__(self, mask_BT: Tensor) -> None:
        self._mask_BT = mask_BT
        # Places of the tokens, so ordered that those that count stand at the end of their row, as they came.
        self._order_BT = mask_BT.to(torch.uint8).argsort(dim=1, stable=True)

    def next_values(self, values_BT: Tensor, last_values_B: Tensor) -> Tensor:
        """At each token the value at the next one, and at the last of them `last_values_B`; anything where masked."""
        ordered_BT = values_BT.gather(1, self._order_BT)
        return self._in_place(torch.cat([ordered_BT[:, 1:], last_values_B[:, None]], dim=1))

    def discounted_sums(self, terms_BT: Tensor, *, discount: float) -> Tensor:
        """At each token its term and those of later tokens, each times `discount` once for every token in between; 0 where
        masked."""
        ordered_BT = torch.where(self._mask_BT, terms_BT, 0.0).gather(1, self._order_BT)
        return torch.where(self._mask_BT, self._in_place(_sums_without_gaps(ordered_BT, discount)), 0.0)

    def _in_place(self, ordered_BT: Tensor) -> Tensor:
        return torch.zeros_like(ordered_BT).scatter(1, self._order_BT, ordered_BT)


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
