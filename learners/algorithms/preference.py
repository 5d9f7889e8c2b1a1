"""Bradley-Terry on graded texts: every pair in a batch whose ratings differ enough is a comparison.

Shapes: B texts of the whole batch. Scores are log-odds: sigmoid(s_i - s_j) is the probability that text i is preferred to j.
Source: Ouyang et al. 2022, arXiv:2203.02155, section 3.5, eq. 1.
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from learners.algorithms.loss_output import LossOutput


def comparisons(ratings_B: Tensor, *, min_rating_gap: float) -> Tensor:
    """better_BB, bool: True at [i, j] where text i is rated higher than j by at least the gap. Ties are no comparison."""
    gap_BB = ratings_B.unsqueeze(1) - ratings_B.unsqueeze(0)
    return (gap_BB >= min_rating_gap) & (gap_BB > 0)


def preference_loss(scores_B: Tensor, better_BB: Tensor) -> LossOutput:
    """Mean of -log sigmoid(s_i - s_j) over the comparisons, all of which must be given. Zero where there is none."""
    num_pairs = better_BB.sum().clamp(min=1)
    margin_BB = scores_B.unsqueeze(1) - scores_B.unsqueeze(0)
    loss = (softplus(-margin_BB) * better_BB).sum() / num_pairs
    with torch.no_grad():
        accuracy = ((margin_BB > 0) & better_BB).sum() / num_pairs
    return LossOutput(loss=loss, metrics={"reward_model/train_accuracy": accuracy})
