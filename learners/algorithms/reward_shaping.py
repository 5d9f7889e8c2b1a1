"""What is done to scores before they become rewards.

Shapes: B trajectories of the whole batch. Scores are in score points.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

MIN_STD = 1e-4  # score points; scores that hardly differ are not blown up


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningMoments:
    """Count, mean and spread of every score seen so far. Plain numbers, so that a checkpoint holds them as they are.

    Source of the update: Chan, Golub and LeVeque 1979, "Updating Formulae and a Pairwise Algorithm for Computing Sample
    Variances", eq. 2.1.
    """

    count: int = 0
    mean: float = 0.0
    sum_squares: float = 0.0  # of the deviations from the mean

    def updated(self, scores_B: Tensor) -> Self:
        """The moments with these scores among those seen."""
        count = len(scores_B)
        mean = float(scores_B.double().mean())
        sum_squares = float((scores_B.double() - mean).square().sum())
        total, difference = self.count + count, mean - self.mean
        return type(self)(
            count=total,
            mean=self.mean + difference * count / total,
            sum_squares=self.sum_squares + sum_squares + difference**2 * self.count * count / total,
        )

    @property
    def std(self) -> float:
        """Population standard deviation; 1 before anything was seen."""
        return max((self.sum_squares / self.count) ** 0.5, MIN_STD) if self.count else 1.0


def normalised(scores_B: Tensor, moments: RunningMoments) -> Tensor:
    """Scores in deviations from the running mean. Source: Engstrom et al. 2020, arXiv:2005.12729, section 3 (reward scaling)."""
    return (scores_B - moments.mean) / moments.std


def overlong_penalty(lengths_B: Tensor, *, max_tokens: int, buffer_tokens: int, factor: float) -> Tensor:
    """<= 0: falls over the last `buffer_tokens` before the limit from 0 to -factor. Source: DAPO, arXiv:2503.14476, eq. 13."""
    excess_B = (lengths_B - (max_tokens - buffer_tokens)).clamp(min=0, max=buffer_tokens)
    return -factor * excess_B / buffer_tokens


def length_penalty(lengths_B: Tensor, *, coef: float) -> Tensor:
    """<= 0: `coef` score points for every token."""
    return -coef * lengths_B


def missing_eos_penalty(ends_truncated_B: Tensor, *, penalty: float) -> Tensor:
    """<= 0: `penalty` score points for a completion that was cut. Source: Huang et al. 2024, arXiv:2403.17031, detail 7."""
    return torch.where(ends_truncated_B, -penalty, 0.0)
