"""Generalised advantage estimation over tokens: every token is judged by what the critic learns after it.

Shapes: B trajectories, T completion tokens, right-padded. Rewards, values and results share one unit: score points.
values_BT[:, t] is the critic's estimate before token t is chosen. Source: arXiv:1506.02438, eq. 16-18.
"""

from torch import Tensor

from learners.algorithms.discounting import CountedTokens


def gae(
    rewards_BT: Tensor, values_BT: Tensor, bootstrap_values_B: Tensor, mask_BT: Tensor, *, gamma: float, gae_lambda: float
) -> Tensor:
    """advantages_BT, zero where masked; with `values_BT` added they are the returns that a critic learns.

    Masked tokens are stepped over, neither terminal nor discounting. `bootstrap_values_B` is the value of the state after
    the last token: 0 for a completion that ended by itself, the critic's estimate for one that was cut.
    """
    counted = CountedTokens(mask_BT)
    surprises_BT = rewards_BT + gamma * counted.next_values(values_BT, bootstrap_values_B) - values_BT
    return counted.discounted_sums(surprises_BT, discount=gamma * gae_lambda)
