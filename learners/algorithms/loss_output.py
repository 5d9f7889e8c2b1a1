"""What every loss gives back."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutput:
    """One loss. Produced by the functions in `losses` and `preference`, consumed by the learners' updates."""

    loss: Tensor  # scalar with gradient; this part's share
    metrics: dict[str, Tensor]  # scalars without gradient; this part's share
