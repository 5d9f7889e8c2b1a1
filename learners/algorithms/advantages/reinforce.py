"""REINFORCE: a token is worth the rewards that follow it.

Shapes: B trajectories, T completion tokens. Source: Williams 1992, "Simple Statistical Gradient-Following Algorithms", Machine
Learning 8. With k1 penalties among the rewards and whitening over the batch this is the advantage of REINFORCE++:
Hu et al. 2025, arXiv:2501.03262, section 3.2.
"""

from torch import Tensor

from learners.algorithms.discounting import CountedTokens


def reward_to_go(rewards_BT: Tensor, mask_BT: Tensor, *, gamma: float) -> Tensor:
    """advantages_BT: this token's reward and those after it, discounted; 0 where masked. Masked tokens are stepped over."""
    return CountedTokens(mask_BT).discounted_sums(rewards_BT, discount=gamma)
