"""What a policy learner carries from one batch to the next beside weights and moments. Plain numbers, for checkpoints."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from torch import Tensor

from learners.algorithms.kl_control import adaptive_kl_coef
from learners.algorithms.reward_shaping import RunningMoments
from learners.settings.policy import KLConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerState:
    """Produced by the learner after every batch, consumed by it before the next."""

    kl_coef: float  # score points a nat
    score_moments: RunningMoments = field(default_factory=RunningMoments)
    return_moments: RunningMoments = field(default_factory=RunningMoments)

    @classmethod
    def from_numbers(cls, numbers: Mapping[str, Any]) -> Self:
        """The inverse of `dataclasses.asdict`."""
        return cls(
            kl_coef=numbers["kl_coef"],
            score_moments=RunningMoments(**numbers["score_moments"]),
            return_moments=RunningMoments(**numbers["return_moments"]),
        )

    def with_scores(self, scores_B: Tensor) -> Self:
        """Before the batch is prepared, so that its own scores are among those seen."""
        if not scores_B.isfinite().all():  # the step will be refused, and must leave nothing behind
            return self
        return replace(self, score_moments=self.score_moments.updated(scores_B))

    def with_returns(self, returns_N: Tensor) -> Self:
        """Returns of the valid tokens of a batch."""
        if not returns_N.isfinite().all():
            return self
        return replace(self, return_moments=self.return_moments.updated(returns_N))

    def with_kl(self, kl_nats_per_completion: float, *, num_completions: int, config: KLConfig) -> Self:
        """After the batch whose KL was measured."""
        if config.control == "fixed" or not math.isfinite(kl_nats_per_completion):  # a coefficient that is not a number stays so
            return self
        kl_coef = adaptive_kl_coef(
            self.kl_coef,
            kl_nats_per_completion=kl_nats_per_completion,
            target_kl_nats_per_completion=config.target_kl_nats_per_completion,
            num_completions=num_completions,
            horizon=config.horizon,
        )
        return replace(self, kl_coef=kl_coef)
