"""Proximal policy optimisation of a language model: one rank of a data-parallel group.

Shapes: B trajectories of the whole batch, T completion tokens, N valid tokens of a micro-batch. Every rank holds the whole
batch's records and per-token numbers, computes the same counts, advantages and orders, and runs networks on its share of
the rows only. Sources: arXiv:1707.06347 (PPO), arXiv:1909.08593 (rewards, value loss), arXiv:1506.02438 (advantages).
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from actors.config import DType
from cluster.seeding import derive_seed
from cluster.types import PublishedWeights, ScoredBatch, Trajectory, UpdateResult
from learners.algorithms.advantages import gae
from learners.algorithms.losses import clipped_policy_loss, clipped_value_loss, entropy_loss
from learners.algorithms.masking import masked_mean, masked_sum, masked_variance, whiten
from learners.algorithms.mismatch import mismatch_metrics, truncated_importance_weights
from learners.algorithms.token_rewards import token_rewards
from learners.batch import (
    MicroBatch,
    PreparedBatch,
    TokenBatch,
    TrainingBatch,
    collate,
    collate_tokens,
    micro_batch,
    micro_batches,
    shard,
)
from learners.collectives import sum_gradients, sum_over_ranks
from learners.config import PPOConfig
from learners.mailbox import GeneratorLink, StartingPoint
from learners.models import (
    ForwardSettings,
    PolicyWithCritic,
    Reference,
    export_policy,
    freeze_lowest_layers,
    load_critic_trunk,
    load_policy,
)
from learners.optimizer import GuardedAdamW
from learners.weights import WeightPublisher, generator_weights

if TYPE_CHECKING:
    from learners.device_weights import WeightSender

TORCH_DTYPES: dict[DType, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LOSS_METRICS = ("optim/loss", "policy/loss", "value/loss", "policy/clip_frac", "policy/approx_kl", "value/clip_frac")
ENTROPY_METRICS = ("policy/entropy",)  # known where the entropy is part of the loss
MIN_VARIANCE = 1e-8  # a batch whose returns are all equal has no variance to explain


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenPass:
    """Numbers of the weights at batch start. Produced by `PPOLearner._frozen_pass`, consumed by the preparation."""

    old_logprobs_BT: Tensor
    ref_logprobs_BT: Tensor
    values_BT: Tensor
    final_values_B: Tensor  # of the state after the last token


class PPOLearner:
    """Holds policy, critic, reference and optimizer."""

    def __init__(self, start: StartingPoint, config: PPOConfig, *, rank: int = 0, world_size: int = 1) -> None:
        self._start = start
        self._config = config
        self._rank = rank
        self._world_size = world_size
        self._device = torch.device("cuda" if config.workers.num_gpus > 0 else "cpu")
        if self._device.type == "cpu":
            torch.set_num_threads(config.workers.num_threads)
        settings = ForwardSettings(
            compute_dtype=TORCH_DTYPES[config.workers.compute_dtype],
            temperature=start.temperature,
            chunk_tokens=config.workers.logprob_chunk_tokens,
        )
        policy = load_policy(start.model_path)
        freeze_lowest_layers(policy, config.num_frozen_layers, settings.compute_dtype)
        critic_trunk = load_critic_trunk(config.critic_model or start.model_path) if config.critic == "own_model" else None
        self._network = PolicyWithCritic(policy, critic_trunk, settings).to(self._device)
        self._reference = Reference(policy, settings).to(self._device)
        self._optimizer = GuardedAdamW(_parameter_groups(self._network, config), config.optimizer)
        self._publisher = WeightPublisher()
        self._sender: WeightSender | None = None

    @property
    def policy_version(self) -> int:
        """Optimizer steps completed."""
        return self._optimizer.num_steps

    def update(self, batch: ScoredBatch) -> UpdateResult:
        """All epochs over one batch."""
        started = time.perf_counter()
        training_batch = collate(batch, self._device)
        prepared, metrics = self._prepare(training_batch)
        prepared_at = time.perf_counter()
        metrics |= self._run_epochs(prepared, step=batch.step)
        metrics |= {"time/prepare_s": prepared_at - started, "time/update_s": time.perf_counter() - prepared_at}
        return UpdateResult(policy_version=self.policy_version, metrics=metrics)

    def completion_logprobs(self, trajectories: Sequence[Trajectory]) -> tuple[tuple[float, ...], ...]:
        """Log-probability of each completion token under the policy, to be laid beside the engine's."""
        tokens = collate_tokens(trajectories, self._device)
        logprobs_BT = self._frozen_pass(tokens).old_logprobs_BT
        rows = zip(logprobs_BT.tolist(), tokens.mask_BT.sum(1).tolist(), strict=True)
        return tuple(tuple(row[:length]) for row, length in rows)

    def reference_kl(self, trajectories: Sequence[Trajectory]) -> tuple[float, ...]:
        """log(policy / reference) summed over each completion, in nats."""
        tokens = collate_tokens(trajectories, self._device)
        frozen = self._frozen_pass(tokens)
        return tuple((frozen.old_logprobs_BT - frozen.ref_logprobs_BT).sum(1).tolist())

    def publish(self, directory: Path, dtype: DType) -> PublishedWeights:
        """Write the policy for generators; call it on one rank."""
        tensors = generator_weights(self._network.policy, TORCH_DTYPES[dtype])
        return self._publisher.publish(tensors, directory, policy_version=self.policy_version)

    def connect(self, link: GeneratorLink) -> None:
        """Join the generators' end of a link over devices; call it on every rank."""
        from learners.device_weights import WeightSender

        self._sender = WeightSender(self._network.policy, link, dtype=TORCH_DTYPES[link.dtype], rank=self._rank)

    def send_weights(self) -> PublishedWeights:
        """Send the policy over the link; call it on every rank."""
        assert self._sender is not None, "the handle connects before it sends"
        return self._sender.send(policy_version=self.policy_version)

    def export(self, directory: Path, dtype: DType) -> None:
        """Write the policy as a Hugging Face folder; call it on one rank."""
        export_policy(self._network.policy, Path(self._start.model_path), directory, TORCH_DTYPES[dtype])

    def _prepare(self, batch: TrainingBatch) -> tuple[PreparedBatch, dict[str, float]]:
        """Everything that stays fixed over the epochs."""
        config, tokens = self._config, batch.tokens
        mask_BT, num_tokens = tokens.mask_BT, tokens.num_tokens
        frozen = self._frozen_pass(tokens)
        scores_B, bootstrap_B = _truncation(batch, frozen.final_values_B, config)
        rewards_BT = token_rewards(frozen.old_logprobs_BT, frozen.ref_logprobs_BT, scores_B, mask_BT, kl_coef=config.kl_coef)
        advantages_BT, returns_BT = gae(
            rewards_BT, frozen.values_BT, bootstrap_B, mask_BT, gamma=config.gamma, gae_lambda=config.gae_lambda
        )
        if config.whiten_advantages:
            advantages_BT = whiten(advantages_BT, mask_BT, count=num_tokens)
        if config.mismatch_correction == "token":
            importance_weights_BT = truncated_importance_weights(
                frozen.old_logprobs_BT, tokens.rollout_logprobs_BT, mask_BT, cap=config.mismatch_cap
            )
        else:
            importance_weights_BT = torch.ones_like(frozen.old_logprobs_BT)
        prepared = PreparedBatch(
            tokens=tokens,
            old_logprobs_BT=frozen.old_logprobs_BT,
            ref_logprobs_BT=frozen.ref_logprobs_BT,
            old_values_BT=frozen.values_BT,
            advantages_BT=advantages_BT,
            returns_BT=returns_BT,
            importance_weights_BT=importance_weights_BT,
        )
        return prepared, _batch_metrics(prepared, batch.scores_B, mismatch_cap=config.mismatch_cap)

    @torch.no_grad()
    def _frozen_pass(self, tokens: TokenBatch) -> FrozenPass:
        """Policy, critic and reference on all rows; each rank computes its share, all ranks get everything."""
        old_logprobs_BT = torch.zeros_like(tokens.rollout_logprobs_BT)
        ref_logprobs_BT, values_BT = torch.zeros_like(old_logprobs_BT), torch.zeros_like(old_logprobs_BT)
        final_values_B = torch.zeros_like(old_logprobs_BT[:, 0])
        for part in self._micro_batches(tokens, range(len(tokens.lengths_B))):
            output = self._network(part)
            place = (part.rows_B[part.row_N], part.column_N)
            old_logprobs_BT[place] = output.logprobs_N
            ref_logprobs_BT[place] = self._reference(part)
            values_BT[place] = output.values_N
            final_values_B[part.rows_B] = output.final_values_B
        for tensor in (old_logprobs_BT, ref_logprobs_BT, values_BT, final_values_B):
            sum_over_ranks(tensor, self._world_size)  # every entry is set on exactly one rank
        return FrozenPass(
            old_logprobs_BT=old_logprobs_BT,
            ref_logprobs_BT=ref_logprobs_BT,
            values_BT=values_BT,
            final_values_B=final_values_B,
        )

    def _run_epochs(self, prepared: PreparedBatch, *, step: int) -> dict[str, float]:
        """Every minibatch of every epoch; metrics are means over the minibatches."""
        minibatches = [rows for epoch in range(self._config.num_epochs) for rows in self._minibatches(prepared, step, epoch)]
        total_steps = self._config.num_steps * len(minibatches)
        outcomes = [self._step(prepared, rows, total_steps=total_steps) for rows in minibatches]
        metrics = {name: sum(outcome[name] for outcome in outcomes) / len(outcomes) for name in outcomes[0]}
        return metrics | {
            "optim/learning_rate": self._optimizer.learning_rate(),
            "optim/skipped_steps": sum(outcome["optim/skipped_steps"] for outcome in outcomes),
        }

    def _minibatches(self, prepared: PreparedBatch, step: int, epoch: int) -> Iterator[list[int]]:
        """A new order each epoch, a function of seed, step and epoch alone; the last minibatch may be smaller."""
        generator = np.random.default_rng(derive_seed(self._start.seed, "minibatches", step, epoch))
        order = generator.permutation(len(prepared.tokens.lengths_B)).tolist()
        for start in range(0, len(order), self._config.minibatch_size):
            yield order[start : start + self._config.minibatch_size]

    def _step(self, prepared: PreparedBatch, rows: Sequence[int], *, total_steps: int) -> dict[str, float]:
        """One optimizer step on the rows of one minibatch."""
        num_tokens = int(prepared.tokens.mask_BT[rows].sum())
        names = LOSS_METRICS + (ENTROPY_METRICS if self._config.entropy_coef > 0 else ())
        sums_K = torch.zeros(len(names), device=self._device)  # a rank without rows contributes zeros
        self._optimizer.zero_grad()
        for part in self._micro_batches(prepared.tokens, rows):
            loss, metrics = self._loss(prepared, part, num_tokens=num_tokens)
            loss.backward()
            sums_K += torch.stack([metrics[name] for name in names]).detach()
        sum_over_ranks(sums_K, self._world_size)
        sum_gradients(self._optimizer.parameters, self._world_size)
        metrics_of_step = dict(zip(names, sums_K.tolist(), strict=True))
        grad_norm, stepped = self._optimizer.step(metrics_of_step["optim/loss"], total_steps=total_steps)
        return metrics_of_step | {"optim/grad_norm": grad_norm, "optim/skipped_steps": float(not stepped)}

    def _loss(self, prepared: PreparedBatch, part: MicroBatch, *, num_tokens: int) -> tuple[Tensor, dict[str, Tensor]]:
        """This micro-batch's share of the minibatch's loss and metrics."""
        config, mask_BT = self._config, part.mask_BT
        output = self._network(part, with_entropy=config.entropy_coef > 0)
        policy = clipped_policy_loss(
            _spread(output.logprobs_N, mask_BT),
            _rows(prepared.old_logprobs_BT, part),
            _rows(prepared.advantages_BT, part),
            _rows(prepared.importance_weights_BT, part),
            mask_BT,
            clip_eps=config.clip_eps,
            num_tokens=num_tokens,
        )
        value = clipped_value_loss(
            _spread(output.values_N, mask_BT),
            _rows(prepared.old_values_BT, part),
            _rows(prepared.returns_BT, part),
            mask_BT,
            clip_eps=config.value_clip_eps,
            num_tokens=num_tokens,
        )
        loss = policy.loss + config.value_coef * value.loss
        metrics = {**policy.metrics, **value.metrics, "policy/loss": policy.loss, "value/loss": value.loss}
        if output.entropy_N is not None:
            entropy = entropy_loss(_spread(output.entropy_N, mask_BT), mask_BT, num_tokens=num_tokens)
            loss = loss + config.entropy_coef * entropy.loss
            metrics |= entropy.metrics
        return loss, metrics | {"optim/loss": loss}

    def _micro_batches(self, tokens: TokenBatch, rows: Sequence[int]) -> Iterator[MicroBatch]:
        """This rank's share of the rows, in packs that fit the token budget."""
        lengths = tokens.lengths_B.tolist()
        # Ranks take turns in order of length, so that their shares cost about the same.
        own_rows = shard(sorted(rows, key=lambda row: lengths[row]), self._rank, self._world_size)
        for pack in micro_batches(own_rows, lengths, max_tokens=self._config.workers.micro_batch_tokens):
            yield micro_batch(tokens, pack)


def _parameter_groups(network: PolicyWithCritic, config: PPOConfig) -> list[tuple[list[Tensor], float]]:
    """What is trained of the trunks, and the value head, each with its peak learning rate."""
    head = list(network.value_head.parameters())
    in_head = {id(parameter) for parameter in head}
    trunks = [parameter for parameter in network.parameters() if parameter.requires_grad and id(parameter) not in in_head]
    return [(trunks, config.optimizer.learning_rate), (head, config.value_learning_rate)]


def _truncation(batch: TrainingBatch, final_values_B: Tensor, config: PPOConfig) -> tuple[Tensor, Tensor]:
    """(scores_B, bootstrap_values_B) under the configured treatment of completions cut at the length limit."""
    cut_B, nothing_B = batch.ends_truncated_B, torch.zeros_like(final_values_B)
    if config.truncation == "bootstrap":
        return batch.scores_B, torch.where(cut_B, final_values_B, nothing_B)
    if config.truncation == "penalty":
        return torch.where(cut_B, config.truncation_score, batch.scores_B), nothing_B
    return batch.scores_B, nothing_B


def _spread(values_N: Tensor, mask_BT: Tensor) -> Tensor:
    """Valid tokens back to their places, zero elsewhere; keeps the gradient."""
    return torch.zeros(mask_BT.shape, dtype=values_N.dtype, device=values_N.device).masked_scatter(mask_BT, values_N)


def _rows(values_BT: Tensor, part: MicroBatch) -> Tensor:
    """The block of a whole-batch tensor that belongs to a micro-batch."""
    return values_BT[part.rows_B, : part.mask_BT.shape[1]]


def _batch_metrics(prepared: PreparedBatch, scores_B: Tensor, *, mismatch_cap: float) -> dict[str, float]:
    """What is known before the first optimizer step."""
    tokens, num_tokens = prepared.tokens, prepared.tokens.num_tokens
    mask_BT, returns_BT = tokens.mask_BT, prepared.returns_BT
    unexplained = masked_variance(returns_BT - prepared.old_values_BT, mask_BT, count=num_tokens)
    variance = masked_variance(returns_BT, mask_BT, count=num_tokens)
    reference_kl = masked_sum(prepared.old_logprobs_BT - prepared.ref_logprobs_BT, mask_BT) / len(scores_B)
    metrics = mismatch_metrics(
        prepared.old_logprobs_BT, tokens.rollout_logprobs_BT, mask_BT, cap=mismatch_cap, num_tokens=num_tokens
    ) | {
        "policy/ref_kl_nats_per_completion": reference_kl,
        # The mean of -log p over sampled tokens estimates the entropy without a pass over the vocabulary.
        "policy/sampled_entropy": -masked_mean(prepared.old_logprobs_BT, mask_BT, count=num_tokens),
        "value/explained_variance": 1 - unexplained / variance.clamp(min=MIN_VARIANCE),
        "score/mean": scores_B.mean(),
        "score/std": scores_B.std(correction=0),
    }
    return {name: value.item() for name, value in metrics.items()} | {
        "rollout/completion_tokens_mean": num_tokens / len(scores_B)
    }
