"""Settings of the policy-gradient learner: a few parts, and presets that are nothing but values over them."""

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from cluster.config import StrictConfig
from learners.settings.presets import Algorithm, with_preset
from learners.settings.training import LoRAConfig, OptimizerConfig, WorkerConfig

GROUP_ESTIMATORS = ("grpo", "dr_grpo", "rloo")  # a trajectory is judged against others of its prompt
TOKEN_ESTIMATORS = ("gae", "reinforce")  # each token of a completion has an advantage of its own


class AdvantageConfig(StrictConfig):
    """How much better than expected a token was."""

    estimator: Literal["gae", "reinforce", "grpo", "dr_grpo", "rloo", "remax"] = "gae"
    """gae: by a critic. reinforce: the rewards that follow. grpo, dr_grpo, rloo: against the other completions of the prompt.
    remax: against the greedy completion of the prompt, one more rollout each."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount of rewards, a token."""
    gae_lambda: float = Field(0.95, ge=0, le=1)
    """Of estimator=gae: 0 trusts the critic, 1 the rewards that follow. arXiv:1506.02438."""
    whiten: bool = True
    """Mean 0 and variance 1 over all tokens of the batch."""


class PolicyLossConfig(StrictConfig):
    """What the policy minimises."""

    kind: Literal["ppo_clip", "gspo", "cispo", "policy_gradient"] = "ppo_clip"
    """ppo_clip: the clipped ratio of each token. gspo: that of each completion. cispo: a clipped
    weight on the log-probability of each token. policy_gradient: no ratio."""
    clip_eps: float = Field(0.2, gt=0, le=1)
    """The ratio counts down to 1 - clip_eps. arXiv:1707.06347, table 1."""
    clip_eps_high: float | None = Field(None, gt=0)
    """The ratio counts up to 1 + clip_eps_high; None is clip_eps. arXiv:2503.14476, 3.1."""
    dual_clip: float | None = Field(None, gt=1)
    """A token with advantage A < 0 costs at most -dual_clip * A; None is no limit. arXiv:1912.09729."""
    aggregation: Literal["token_mean", "sequence_mean", "constant_length"] = "token_mean"
    """token_mean: every token of a minibatch counts the same. sequence_mean: every completion does. constant_length: every
    token counts 1 / sampling.max_completion_tokens of a completion."""
    entropy_coef: float = Field(0.0, ge=0)
    """Weight of the entropy, which the policy then maximises; 0 is off."""
    target_kl: float | None = Field(None, gt=0)
    """Nats a token between the policy and itself at batch start; above it, the rest of the batch's minibatches is left out."""

    @property
    def highest_ratio_eps(self) -> float:
        return self.clip_eps if self.clip_eps_high is None else self.clip_eps_high


class CriticConfig(StrictConfig):
    """What estimates returns."""

    kind: Literal["none", "value_head", "own_model"] = "value_head"
    """value_head: a linear head on the policy's trunk. own_model: a second trunk that starts from `model`."""
    model: str | None = None
    """Start of kind=own_model; None is the policy's own start."""
    learning_rate: float = Field(1e-4, gt=0, lt=1)
    """Of the value head; an own trunk uses the optimizer's."""
    coef: float = Field(0.1, ge=0)
    """Weight of the value loss, which has the factor 1/2 inside. arXiv:1909.08593, code."""
    clip_eps: float | None = Field(0.2, gt=0)
    """How far a value may move from that at batch start, in the unit of the loss; None is no limit."""
    warmup_steps: int = Field(0, ge=0)
    """Steps at the start in which the critic alone learns; a value head then leaves the trunk as it is."""
    whiten_returns: bool = False
    """The critic learns returns in deviations from their running mean. arXiv:1602.07714."""


class KLConfig(StrictConfig):
    """How the policy is held to the reference."""

    coef: float = Field(0.05, ge=0)
    """Score points a nat; 0 is off."""
    place: Literal["reward", "loss"] = "reward"
    """reward: taken from each token's reward. loss: a term of the loss."""
    estimator: Literal["k1", "k2", "k3"] = "k1"
    """k1 in the reward; k2 (the gradient of the KL) or k3 in the loss."""
    control: Literal["fixed", "adaptive"] = "fixed"
    """adaptive: `coef` moves so that the KL comes to the target. arXiv:1909.08593, 2.2."""
    target_kl_nats_per_completion: float = Field(6.0, gt=0)
    """Of control=adaptive: the KL summed over the tokens of a completion."""
    horizon: int = Field(10_000, ge=1)
    """Of control=adaptive: completions over which the coefficient moves by a fifth at most."""
    refresh_reference_steps: int = Field(0, ge=0)
    """After so many steps the reference becomes a copy of the policy, again and again; 0 is never. The KL of training is to
    this reference; evaluations measure the KL to the start, and then keep one more copy of it."""

    @property
    def is_used(self) -> bool:
        """Where it is not, updates run no reference, and the KL is measured by evaluations only."""
        return self.coef > 0


class MismatchConfig(StrictConfig):
    """Rollouts come from an engine whose numbers differ from the learner's, and perhaps from older weights."""

    old_logprobs: Literal["learner", "rollout"] = "learner"
    """What the ratio compares with. learner: the weights at batch start. rollout: the engine's own numbers, uncorrected."""
    correction: Literal["none", "token", "sequence", "masked_token"] = "token"
    """token, sequence: the loss is weighted by exp(old - rollout log-prob), at most `cap`. masked_token: 0 outside the band."""
    cap: float = Field(2.0, ge=1)
    """Of correction=token and sequence: the largest weight."""
    band: tuple[float, float] = (0.5, 2.0)
    """Ratios that masked_token and reject_sequences keep."""
    reject_sequences: bool = False
    """Leave out completions whose mean ratio (geometric) lies outside the band."""
    max_logprob_mismatch: float = Field(0.1, gt=0)
    """Start-up check: mean absolute difference, in nats, between engine and learner on fixed tokens."""


class RewardShapingConfig(StrictConfig):
    """What is done to scores before they become rewards, in this order."""

    truncation: Literal["terminal", "penalty", "bootstrap"] = "terminal"
    """A completion cut at the length limit. terminal: nothing follows. penalty: nothing follows and its score is
    `truncation_score`. bootstrap: the critic's value of its last state follows; only for scores of single steps, because a
    score of the whole text would count twice."""
    truncation_score: float = 0.0
    """Of truncation=penalty, in score points."""
    clip: float | None = Field(None, gt=0)
    """The score of a completion, and that of each step, is limited to -clip .. clip."""
    normalise: bool = False
    """A completion's total, with the scores of its steps, counts in deviations from its running mean. The moments are part of
    the learner's state."""
    missing_eos_penalty: float = Field(0.0, ge=0)
    """Taken from the score of a completion that was cut."""
    length_penalty: float = Field(0.0, ge=0)
    """Taken from the score for every token."""
    overlong_penalty: float = Field(0.0, ge=0)
    """Taken from the score of a completion of full length; falls to 0 over the buffer. arXiv:2503.14476, eq. 13."""
    overlong_buffer_frac: float = Field(0.2, gt=0, le=1)
    """The buffer, as a share of sampling.max_completion_tokens."""
    whiten: bool = False
    """Scale token rewards, KL penalty and all, to variance 1 over the batch; they keep their mean."""


class GroupFilterConfig(StrictConfig):
    """Dynamic sampling: prompts whose completions all have one score teach group methods nothing. arXiv:2503.14476, 3.2."""

    enabled: bool = False
    """Draw further prompts in the place of such groups."""
    max_rounds: int = Field(3, ge=1)
    """Rounds of further prompts in one step; groups without contrast fill what is then still missing. Further prompts are also
    asked for ahead, at the share that was useful in the steps before, and count towards max_rounds times prompts_per_step."""


class PolicyLearnerConfig(StrictConfig):
    """One policy-gradient learner. `algorithm` picks the values of every part that the file does not name."""

    algorithm: Algorithm = "ppo"
    """The method. `rayward config explain` shows where its preset changes a default."""
    num_steps: int = Field(ge=1)
    """Rounds of rollout and update."""
    prompts_per_step: int = Field(ge=1)
    """Prompts that one round takes; each has sampling.samples_per_prompt completions."""
    num_epochs: int = Field(1, ge=1)
    """Passes over a batch of rollouts."""
    minibatch_size: int = Field(ge=1)
    """Trajectories per optimizer step, over all ranks."""
    num_frozen_layers: int = Field(0, ge=0)
    """Lowest transformer layers (with the embeddings, and a head tied to them) that keep their weights: saves their backward
    pass and optimizer state."""
    lora: LoRAConfig | None = None
    """Set, an adapter is trained in the place of the policy's weights, and another one in the place of an own critic's; a value
    head is trained whole. The reference is the policy with its adapter switched off, and the adapter alone travels to generators,
    where a completion keeps the version that it began with. With num_frozen_layers, the lowest layers have no adapter. Unset,
    all weights are trained."""
    optimizer: OptimizerConfig = OptimizerConfig()
    advantage: AdvantageConfig = AdvantageConfig()
    policy_loss: PolicyLossConfig = PolicyLossConfig()
    critic: CriticConfig = CriticConfig()
    kl: KLConfig = KLConfig()
    mismatch: MismatchConfig = MismatchConfig()
    reward: RewardShapingConfig = RewardShapingConfig()
    group_filter: GroupFilterConfig = GroupFilterConfig()
    workers: WorkerConfig = WorkerConfig()

    @model_validator(mode="before")
    @classmethod
    def _preset_below_the_values(cls, values: Any) -> Any:
        return with_preset(values) if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        problems = [*self._advantage_problems(), *self._loss_problems(), *self._kl_problems(), *self._mismatch_problems()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _advantage_problems(self) -> list[str]:
        estimator, critic, reward = self.advantage.estimator, self.critic, self.reward
        checks = {
            "advantage.estimator=gae needs a critic, but critic.kind=none; use value_head or own_model": estimator == "gae"
            and critic.kind == "none",
            f"advantage.estimator={estimator} uses no critic, so critic.kind={critic.kind} would learn for nothing; set "
            "critic.kind=none": estimator != "gae" and critic.kind != "none",
            f"advantage.estimator={estimator} sums a completion's rewards, so advantage.gamma={self.advantage.gamma:g} has no "
            "meaning; set it to 1": estimator not in TOKEN_ESTIMATORS and self.advantage.gamma != 1,
            "reward.truncation=bootstrap needs a critic's value; use terminal or penalty": reward.truncation == "bootstrap"
            and critic.kind == "none",
            f"reward.whiten has no meaning for advantage.estimator={estimator}, which judges whole completions; leave it "
            "out": reward.whiten and estimator not in TOKEN_ESTIMATORS,
            f"critic.model={critic.model!r} has no meaning with critic.kind={critic.kind}; set critic.kind=own_model": (
                critic.model is not None and critic.kind != "own_model"
            ),
            f"critic.warmup_steps={critic.warmup_steps} has no meaning without a critic; set it to 0": (
                critic.warmup_steps > 0 and critic.kind == "none"
            ),
        }
        return [problem for problem, applies in checks.items() if applies]

    def _loss_problems(self) -> list[str]:
        loss, estimator = self.policy_loss, self.advantage.estimator
        checks = {
            f"policy_loss.kind=gspo clips the ratio of whole completions, but advantage.estimator={estimator} judges each token; "
            f"use one of {', '.join(GROUP_ESTIMATORS)}, remax": loss.kind == "gspo" and estimator in TOKEN_ESTIMATORS,
            f"policy_loss.kind=gspo is a mean over completions, but policy_loss.aggregation={loss.aggregation}; set "
            "sequence_mean": loss.kind == "gspo" and loss.aggregation != "sequence_mean",
            f"policy_loss.dual_clip={loss.dual_clip} has no meaning with policy_loss.kind={loss.kind}; leave it out": (
                loss.dual_clip is not None and loss.kind != "ppo_clip"
            ),
            f"policy_loss.kind=policy_gradient has no ratio to old weights, so num_epochs={self.num_epochs} would be biased; "
            "set it to 1, or use ppo_clip": loss.kind == "policy_gradient" and self.num_epochs > 1,
        }
        return [problem for problem, applies in checks.items() if applies]

    def _kl_problems(self) -> list[str]:
        kl = self.kl
        checks = {
            "kl.estimator=k1 as a loss has a gradient of zero on average; use k2, or k3": kl.place == "loss"
            and kl.estimator == "k1",
            f"kl.estimator={kl.estimator} in the reward does not give the gradient of the KL; use k1": kl.place == "reward"
            and kl.estimator != "k1",
            "kl.control=adaptive cannot move kl.coef=0; start it above 0": kl.control == "adaptive" and kl.coef == 0,
            f"kl.refresh_reference_steps={kl.refresh_reference_steps} moves the reference, but that of `lora` is the policy with "
            "its adapter switched off; set kl.refresh_reference_steps=0": kl.refresh_reference_steps > 0
            and self.lora is not None,
        }
        return [problem for problem, applies in checks.items() if applies]

    def _mismatch_problems(self) -> list[str]:
        mismatch, (lowest, highest) = self.mismatch, self.mismatch.band
        corrected = mismatch.correction != "none" or mismatch.reject_sequences
        checks = {
            "mismatch.old_logprobs=rollout already compares with the engine's numbers, so a correction would count them twice; "
            "set mismatch.correction=none and reject_sequences=false": mismatch.old_logprobs == "rollout" and corrected,
            f"mismatch.band={lowest:g}, {highest:g} must hold 1, the ratio of equal numbers": not 0 <= lowest <= 1 <= highest
            or math.isnan(highest),
        }
        return [problem for problem, applies in checks.items() if applies]
