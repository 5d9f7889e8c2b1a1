"""A bonus for staying undecided.

Shapes: B trajectories, T completion tokens; nats. Source: Williams and Peng 1991, "Function Optimization Using Connectionist
Reinforcement Learning Algorithms", Connection Science 3.
"""

from torch import Tensor

from learners.algorithms.aggregation import LossTokens
from learners.algorithms.loss_output import LossOutput


def entropy_loss(entropy_BT: Tensor, tokens: LossTokens) -> LossOutput:
    """Negative entropy of each position's distribution: minimising it keeps the policy exploring."""
    return LossOutput(loss=-tokens.loss(entropy_BT), metrics={"policy/entropy": tokens.mean(entropy_BT)})
