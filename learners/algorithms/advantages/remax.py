"""ReMax: the baseline is the score of the completion that the policy finds likeliest, decoded greedily.

Shapes: B trajectories. Source: Li et al. 2023, "ReMax", arXiv:2310.10505, algorithm 1.
"""

from torch import Tensor


def remax(returns_B: Tensor, greedy_scores_B: Tensor) -> Tensor:
    """advantages_B = return - score of the greedy completion of the same prompt. Unbiased: the baseline is not sampled."""
    return returns_B - greedy_scores_B
