"""What one optimizer step minimises: the configured losses, added up.

Shapes: B trajectories of a micro-batch, T completion tokens. Losses and metrics are this part's shares of the step's.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from learners.algorithms.aggregation import LossTokens, constant_length, sequence_mean, token_mean
from learners.algorithms.kl import k2, k3
from learners.algorithms.loss_output import LossOutput
from learners.algorithms.losses.cispo import cispo_loss
from learners.algorithms.losses.entropy import entropy_loss
from learners.algorithms.losses.gspo import gspo_loss
from learners.algorithms.losses.kl_penalty import Estimator, kl_penalty_loss
from learners.algorithms.losses.policy_gradient import policy_gradient_loss
from learners.algorithms.losses.ppo_clip import ppo_clip_loss
from learners.algorithms.losses.value import clipped_value_loss
from learners.network.micro_batch import MicroBatch
from learners.network.models import PolicyOutput
from learners.policy.batch import PreparedBatch
from learners.policy.preparation import importance_weights
from learners.settings.policy import PolicyLearnerConfig, PolicyLossConfig

POLICY_LOSSES: Mapping[str, Callable[[PolicyLossConfig], Callable[..., LossOutput]]] = {
    "ppo_clip": lambda config: partial(
        ppo_clip_loss,
        clip_eps=config.clip_eps,
        clip_eps_high=config.highest_ratio_eps,
        dual_clip=math.inf if config.dual_clip is None else config.dual_clip,
    ),
    "gspo": lambda config: partial(gspo_loss, clip_eps=config.clip_eps, clip_eps_high=config.highest_ratio_eps),
    "cispo": lambda config: partial(cispo_loss, clip_eps=config.clip_eps, clip_eps_high=config.highest_ratio_eps),
    "policy_gradient": lambda config: policy_gradient_loss,
}
KL_LOSS_ESTIMATORS: Mapping[str, Estimator] = {"k2": k2, "k3": k3}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCounts:
    """Sizes of one optimizer step over all micro-batches and ranks. Produced by the learner, consumed by `Objective`."""

    num_tokens: int
    num_trajectories: int
    max_completion_tokens: int  # of the run's sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTerms:
    """What the loss of one optimizer step takes from the learner's state. Produced by the learner, consumed by `Objective`."""

    kl_coef: float  # score points a nat
    value_scale: float  # score points that count as 1 in the value loss
    policy_learns: bool  # False while the critic warms up
    at_batch_start: bool  # the weights are still those that the batch began with


AGGREGATIONS: Mapping[str, Callable[[Tensor, StepCounts], LossTokens]] = {
    "token_mean": lambda mask_BT, counts: token_mean(mask_BT, num_tokens=counts.num_tokens),
    "sequence_mean": lambda mask_BT, counts: sequence_mean(
        mask_BT, num_tokens=counts.num_tokens, num_trajectories=counts.num_trajectories
    ),
    "constant_length": lambda mask_BT, counts: constant_length(
        mask_BT,
        num_tokens=counts.num_tokens,
        num_trajectories=counts.num_trajectories,
        max_tokens=counts.max_completion_tokens,
    ),
}


class Objective:
    """The losses of one learner."""

    def __init__(self, config: PolicyLearnerConfig) -> None:
        self._config = config
        self._policy_loss = POLICY_LOSSES[config.policy_loss.kind](config.policy_loss)
        self._aggregation = AGGREGATIONS[config.policy_loss.aggregation]
        self._has_critic = config.critic.kind != "none"
        self._has_entropy = config.policy_loss.entropy_coef > 0
        self._has_kl = config.kl.is_used and config.kl.place == "loss"

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What `loss` reports, in a fixed order; a rank without trajectories reports nothing."""
        names = ["optim/loss", "policy/loss", "policy/clip_frac", "policy/approx_kl"]
        names += ["value/loss", "value/clip_frac"] if self._has_critic else []
        names += ["policy/entropy"] if self._has_entropy else []
        return tuple(names + (["policy/kl_penalty"] if self._has_kl else []))

    @property
    def needs_entropy(self) -> bool:
        return self._has_entropy

    def loss(
        self,
        output: PolicyOutput,
        prepared: PreparedBatch,
        part: MicroBatch,
        counts: StepCounts,
        terms: StepTerms,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss with gradient, metrics)."""
        tokens = self._aggregation(part.mask_BT, counts)
        policy = self._policy_terms(output, prepared, part, tokens, terms)
        loss, metrics = policy.loss if terms.policy_learns else policy.loss.detach(), policy.metrics
        if self._has_critic:
            critic = self._config.critic
            value = clipped_value_loss(
                spread(output.values_N, part.mask_BT) / terms.value_scale,
                rows_of(prepared.old_values_BT, part) / terms.value_scale,
                rows_of(prepared.returns_BT, part) / terms.value_scale,
                token_mean(part.mask_BT, num_tokens=counts.num_tokens),
                clip_eps=math.inf if critic.clip_eps is None else critic.clip_eps,
            )
            loss = loss + critic.coef * value.loss
            metrics |= {**value.metrics, "value/loss": value.loss}
        return loss, metrics | {"optim/loss": loss}

    def _policy_terms(
        self, output: PolicyOutput, prepared: PreparedBatch, part: MicroBatch, tokens: LossTokens, terms: StepTerms
    ) -> LossOutput:
        logprobs_BT = spread(output.logprobs_N, part.mask_BT)
        old_logprobs_BT, weights_BT = self._old_policy(logprobs_BT.detach(), prepared, part, terms)
        policy = self._policy_loss(logprobs_BT, old_logprobs_BT, rows_of(prepared.advantages_BT, part), weights_BT, tokens)
        approx_kl = tokens.mean(k3(old_logprobs_BT, logprobs_BT))
        loss, metrics = policy.loss, {**policy.metrics, "policy/loss": policy.loss, "policy/approx_kl": approx_kl}
        if output.entropy_N is not None:
            entropy = entropy_loss(spread(output.entropy_N, part.mask_BT), tokens)
            loss, metrics = loss + self._config.policy_loss.entropy_coef * entropy.loss, metrics | entropy.metrics
        if self._has_kl:
            estimator = KL_LOSS_ESTIMATORS[self._config.kl.estimator]
            penalty = kl_penalty_loss(logprobs_BT, rows_of(prepared.ref_logprobs_BT, part), tokens, estimator=estimator)
            loss, metrics = loss + terms.kl_coef * penalty.loss, metrics | penalty.metrics
        return LossOutput(loss=loss, metrics=metrics)

    def _old_policy(
        self, own_logprobs_BT: Tensor, prepared: PreparedBatch, part: MicroBatch, terms: StepTerms
    ) -> tuple[Tensor, Tensor]:
        """(old_logprobs_BT, importance_weights_BT). At batch start the old policy is this one, and its numbers are those of this
        very pass: rounding, which other packs of rows change, must not open a ratio between equal weights."""
        mismatch = self._config.mismatch
        if not terms.at_batch_start or mismatch.old_logprobs == "rollout":
            return rows_of(prepared.old_logprobs_BT, part), rows_of(prepared.importance_weights_BT, part)
        rollout_logprobs_BT = rows_of(prepared.rollout_logprobs_BT, part)
        return own_logprobs_BT, importance_weights(own_logprobs_BT, rollout_logprobs_BT, part.mask_BT, mismatch)


def spread(values_N: Tensor, mask_BT: Tensor) -> Tensor:
    """Valid tokens back to their places, zero elsewhere; keeps the gradient."""
    return torch.zeros(mask_BT.shape, dtype=values_N.dtype, device=values_N.device).masked_scatter(mask_BT, values_N)


def rows_of(values_BT: Tensor, part: MicroBatch) -> Tensor:
    """The block of a whole-batch tensor that belongs to a micro-batch."""
    return values_BT[part.rows_B, : part.mask_BT.shape[1]]
