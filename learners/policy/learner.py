"""Policy-gradient learning of a language model: one rank of a data-parallel group.

Shapes: B trajectories of the whole batch, T tokens that the policy chose in one, N of these in a micro-batch. Every rank knows
all per-token numbers, computes the same counts, advantages and orders, and fetches tokens and runs networks for its share of the
rows only. What is learned is `preparation.prepare` and `objective.Objective`; here is how.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from actors.config import DType
from cluster.seeding import derive_seed
from cluster.storage.serving_contract import ContractText
from cluster.types import (
    AdapterFile,
    FloatArray,
    ScoredBatch,
    ScoredGroup,
    SentWeights,
    TrajectoryGroup,
    UpdateResult,
    WeightFile,
)
from learners.algorithms.masking import masked_mean, masked_sum, masked_variance
from learners.algorithms.mismatch import mismatch_metrics
from learners.network.activation_checkpointing import recompute_activations
from learners.network.assembly import ReferencePass, sharded_networks, whole_networks
from learners.network.collectives import sum_gradients, sum_over_ranks
from learners.network.frozen_layers import FrozenStates
from learners.network.lora import adapter_tensors
from learners.network.micro_batch import RankShare, TokenBatch, fetch_on_all_ranks, rollout_logprobs
from learners.network.models import TORCH_DTYPES, PolicyWithCritic
from learners.network.optimizer import GuardedAdamW, ParameterGroup
from learners.network.residence import HOST, move_state
from learners.network.sharding import shard_of
from learners.network.trunk import ForwardSettings
from learners.policy.batch import PreparedBatch, check_bootstrap, collate, token_batch
from learners.policy.files import PolicyFiles
from learners.policy.objective import Objective, StepCounts, StepTerms
from learners.policy.preparation import FrozenPass, importance_weights, judged_totals, needs_policy_pass, prepare
from learners.policy.start import StartingPoint
from learners.policy.state import LearnerState
from learners.ranks.checkpoint import RANDOM_STATE, LearnerSnapshot, copied, copy_into, section
from learners.settings.policy import PolicyLearnerConfig
from learners.settings.training import ExportedWeights
from learners.weights.file import untied_tensors
from learners.weights.link import GeneratorLink

if TYPE_CHECKING:
    from learners.weights.device import WeightSender

MIN_VARIANCE = 1e-8  # a batch whose returns are all equal has no variance to explain


class PolicyLearner:
    """Holds policy, critic, reference, optimizer and what is carried from batch to batch."""

    def __init__(self, start: StartingPoint, config: PolicyLearnerConfig, *, rank: int = 0, world_size: int = 1) -> None:
        self._start = start
        self._config = config
        self._rank = rank
        self._world_size = world_size
        self.device = torch.device("cuda" if config.workers.num_gpus > 0 else "cpu")
        if self.device.type == "cpu":
            torch.set_num_threads(config.workers.num_threads)
        settings = self._settings = ForwardSettings(
            compute_dtype=TORCH_DTYPES[config.workers.compute_dtype],
            temperature=start.temperature,
            chunk_tokens=config.workers.logprob_chunk_tokens,
        )
        self.shard = shard_of(config.workers, rank)
        begins_on = HOST if start.takes_turns else self.device
        networks = (
            whole_networks(start.model_path, config, settings, begins_on, seed=start.seed)
            if config.workers.sharding == "none"
            else sharded_networks(start.model_path, config, settings, self.device, rank=rank, seed=start.seed)
        )
        self._network, self._reference, self._start_policy = networks.trained, networks.reference, networks.start_policy
        self._moving_reference = networks.moving
        self._modules = networks.modules
        self._share = RankShare(
            rank,
            world_size,
            max_tokens=config.workers.micro_batch_tokens,
            in_step=self.shard.count > 1,
            is_packed=networks.are_packed,
        )
        if config.workers.activation_checkpointing:
            for trunk in self._network.trunks:
                recompute_activations(trunk)
        self._frozen_states = FrozenStates(self._network.parts, settings)
        self._optimizer = GuardedAdamW(_parameter_groups(self._network, config), config.optimizer)
        self._objective = Objective(config)
        self._state = LearnerState(kl_coef=config.kl.coef)
        self.files = PolicyFiles(self._network, start, config, settings, self.shard)
        # Of full batches: a smaller one, where some rollouts have no score, must not move the end of the decay.
        minibatches = math.ceil(config.prompts_per_step * start.samples_per_prompt / config.minibatch_size)
        self._total_steps = config.num_steps * config.num_epochs * minibatches
        self.num_steps_done = 0  # batches, which is the number of the next
        self._sender: WeightSender | None = None

    @property
    def policy_version(self) -> int:
        """Optimizer steps completed."""
        return self._optimizer.num_steps

    def move_to(self, device: torch.device) -> None:
        """Computing needs the learner's own device; snapshots and publications do not."""
        self._frozen_states.clear()
        move_state(self._modules, self._optimizer, device)

    def snapshot(self) -> LearnerSnapshot:
        """Everything that the next step depends on; of tensors, this rank's part."""
        tensors = copied(self._optimizer.state(), under="optimizer")
        for part, learned in self._learned_tensors().items():
            tensors |= copied(learned, under=part)
        if self.shard.index == 0:
            tensors |= copied({"torch": torch.get_rng_state()}, under=RANDOM_STATE)
        return LearnerSnapshot(
            tensors=tensors,
            numbers={
                "num_steps_done": self.num_steps_done,
                "num_optimizer_steps": self._optimizer.num_steps,
                "value_mean": self._network.value_mean,
                "value_std": self._network.value_std,
                "state": asdict(self._state),
            },
        )

    def restore(self, snapshot: LearnerSnapshot) -> None:
        """Become the learner that the snapshot was taken of."""
        tensors, numbers = snapshot.tensors, snapshot.numbers
        for part, learned in self._learned_tensors().items():
            copy_into(learned, section(tensors, under=part), what=part.removesuffix("_trunk").replace("_", " "))
        self._optimizer.restore(section(tensors, under="optimizer"), num_steps=numbers["num_optimizer_steps"])
        torch.set_rng_state(tensors[f"{RANDOM_STATE}/torch"])
        self._network.value_mean, self._network.value_std = numbers["value_mean"], numbers["value_std"]
        self._state = LearnerState.from_numbers(numbers["state"])
        self.num_steps_done = numbers["num_steps_done"]

    def _learned_tensors(self) -> dict[str, dict[str, Tensor]]:
        """What the start does not say, by part: of an adapted trunk its adapter alone."""
        network, moving = self._network, self._moving_reference
        tensors = {"policy": adapter_tensors(network.policy) or untied_tensors(network.policy)}
        if network.critic_trunk is not None:
            tensors["critic_trunk"] = adapter_tensors(network.critic_trunk) or network.critic_trunk.state_dict()
        if network.value_head is not None:
            tensors["value_head"] = network.value_head.state_dict()
        if moving is not None:
            tensors["reference"] = untied_tensors(moving.policy)
        return tensors

    def update(self, batch: ScoredBatch) -> UpdateResult:
        """All epochs over one batch. Raises `BatchLostError`, and changes nothing, where tokens of it are lost."""
        started = time.perf_counter()
        if self._config.reward.truncation == "bootstrap":
            check_bootstrap(batch)
        training_batch = collate(batch, self.device)
        num_trajectories = len(training_batch.scores_B)
        with_policy = needs_policy_pass(self._config, num_trajectories=num_trajectories)
        reference = self._reference if self._config.kl.is_used else None
        dealt = self._first_deal(training_batch.tokens, step=batch.step)
        frozen = self._frozen_pass(training_batch.tokens, dealt, with_policy=with_policy, reference=reference)
        self._state = self._state.with_scores(judged_totals(training_batch, self._config.reward))
        prepared = prepare(
            training_batch, frozen, self._config, self._state, max_completion_tokens=self._start.max_completion_tokens
        )
        self._follow_returns(prepared)
        prepared_at = time.perf_counter()
        metrics, start_logprobs_BT = self._run_epochs(prepared, step=batch.step)
        if not with_policy:
            sum_over_ranks(start_logprobs_BT, self._world_size)  # every entry is set on exactly one rank
            frozen = replace(frozen, old_logprobs_BT=start_logprobs_BT)
        metrics |= _batch_metrics(prepared, frozen, training_batch.totals_B, self._config)
        metrics["policy/kl_coef"] = self._state.kl_coef
        self.num_steps_done = batch.step + 1
        self._finish(batch.step, metrics, num_completions=num_trajectories)
        metrics |= {"time/prepare_s": prepared_at - started, "time/update_s": time.perf_counter() - prepared_at}
        return UpdateResult(policy_version=self.policy_version, metrics=metrics)

    def completion_logprobs(self, groups: Sequence[TrajectoryGroup]) -> tuple[FloatArray, ...]:
        """Of each trajectory, log-probabilities of the tokens that the policy chose, to be laid beside the engine's."""
        tokens = token_batch([(group, group.samples) for group in groups], self.device)
        logprobs_BT = self._frozen_pass(tokens, self._share.deal_all(tokens), with_policy=True, reference=None).old_logprobs_BT
        rows = zip(logprobs_BT.cpu().numpy(), tokens.mask_BT.sum(1).tolist(), strict=True)
        return tuple(row[:length] for row, length in rows)

    def start_kl(self, groups: Sequence[ScoredGroup]) -> tuple[float, ...]:
        """Of each trajectory with a reward, log(policy / policy at the run's start), summed over its tokens, in nats."""
        tokens = token_batch([(scored.group, scored.samples) for scored in groups], self.device)
        frozen = self._frozen_pass(tokens, self._share.deal_all(tokens), with_policy=True, reference=self._start_policy)
        return tuple((frozen.old_logprobs_BT - frozen.ref_logprobs_BT).sum(1).tolist())

    def publish(self, directory: Path, dtype: DType, probe: Sequence[int] = ()) -> WeightFile | AdapterFile:
        """As in `PolicyFiles`, of the version as it is now."""
        return self.files.publish(directory, dtype, probe, policy_version=self.policy_version)

    def export(self, directory: Path, dtype: DType, texts: Sequence[ContractText], weights: ExportedWeights = "merged") -> str:
        """As in `PolicyFiles`, of the version as it is now."""
        return self.files.export(directory, dtype, texts, weights, policy_version=self.policy_version)

    @property
    def link_epoch(self) -> int:
        """Of the link that was joined last; 0 before the first."""
        return 0 if self._sender is None else self._sender.epoch

    def connect(self, link: GeneratorLink) -> None:
        """Join the generators' end of a link over devices; call it on every rank."""
        from learners.weights.device import WeightSender

        if self._sender is not None:
            self._sender.close()
        self._sender = WeightSender(self._network.policy, link, dtype=TORCH_DTYPES[link.dtype], rank=self._rank)

    def send_weights(self) -> SentWeights:
        """Send the policy over the link; call it on every rank."""
        assert self._sender is not None, "the handle connects before it sends"
        return self._sender.send(policy_version=self.policy_version)

    def _follow_returns(self, prepared: PreparedBatch) -> None:
        """Let the critic speak in the unit of the returns seen so far; what it says in score points stays the same."""
        if self._config.critic.whiten_returns:
            self._state = self._state.with_returns(prepared.returns_BT[prepared.tokens.mask_BT])
            self._network.set_value_unit(self._state.return_moments.mean, self._state.return_moments.std)

    def _finish(self, step: int, metrics: Mapping[str, float], *, num_completions: int) -> None:
        """What changes from one batch to the next."""
        self._frozen_states.clear()
        if self._config.kl.is_used:
            kl = metrics["policy/ref_kl_nats_per_completion"]
            self._state = self._state.with_kl(kl, num_completions=num_completions, config=self._config.kl)
        if self._moving_reference is not None and (step + 1) % self._config.kl.refresh_reference_steps == 0:
            self._moving_reference.refresh(self._network.policy)

    @torch.no_grad()
    def _frozen_pass(
        self, tokens: TokenBatch, dealt: Sequence[list[int]], *, with_policy: bool, reference: ReferencePass | None
    ) -> FrozenPass:
        """Policy with critic, and `reference`, on all rows; each rank computes its own, all ranks get everything.

        `dealt`: the rows of each rank. Raises `BatchLostError` on all ranks before it computes anything.
        """
        fetch_on_all_ranks(tokens, self._share.own(dealt), self._world_size)
        rollout_logprobs_BT = rollout_logprobs(tokens, self._share.own(dealt))
        old_logprobs_BT, ref_logprobs_BT, values_BT = (torch.zeros_like(rollout_logprobs_BT) for _ in range(3))
        final_values_B = torch.zeros_like(old_logprobs_BT[:, 0])
        self._frozen_states.clear()
        for part, weight in self._share.packs(tokens, dealt):
            if not with_policy and reference is None:
                break
            below_RSD = self._frozen_states.of(part)
            place = (part.rows_B[part.row_N], part.column_N)
            if with_policy:
                output = self._network(part, below_RSD)
                old_logprobs_BT[place] += weight * output.logprobs_N
                values_BT[place] += weight * output.values_N
                final_values_B[part.rows_B] += weight * output.final_values_B
            if reference is not None:
                ref_logprobs_BT[place] += weight * reference(part, below_RSD)
        for tensor in (rollout_logprobs_BT, old_logprobs_BT, ref_logprobs_BT, values_BT, final_values_B):
            sum_over_ranks(tensor, self._world_size)  # every entry is set on exactly one rank
        return FrozenPass(
            rollout_logprobs_BT=rollout_logprobs_BT,
            old_logprobs_BT=old_logprobs_BT,
            ref_logprobs_BT=ref_logprobs_BT,
            values_BT=values_BT,
            final_values_B=final_values_B,
        )

    def _run_epochs(self, prepared: PreparedBatch, *, step: int) -> tuple[dict[str, float], Tensor]:
        """Every minibatch of every epoch, or as many as `target_kl` allows.

        Returns metrics, as means over the minibatches, and this rank's log-probabilities from before the first optimizer step.
        """
        config, num_rows = self._config, len(prepared.tokens.segment_lengths)
        minibatches = [rows for epoch in range(config.num_epochs) for rows in self._minibatches(num_rows, step, epoch)]
        target_kl = config.policy_loss.target_kl
        version_at_start = self.policy_version
        start_logprobs_BT = torch.zeros_like(prepared.old_logprobs_BT)
        outcomes: list[dict[str, float]] = []
        for rows in minibatches:
            terms = StepTerms(
                kl_coef=self._state.kl_coef,
                value_scale=self._network.value_std,
                policy_learns=step >= config.critic.warmup_steps,
                at_batch_start=self.policy_version == version_at_start,
            )
            outcomes.append(self._step(prepared, rows, terms, start_logprobs_BT))
            if target_kl is not None and outcomes[-1]["policy/approx_kl"] > target_kl:
                break
        metrics = {name: sum(outcome[name] for outcome in outcomes) / len(outcomes) for name in outcomes[0]}
        metrics |= {
            "optim/learning_rate": self._optimizer.learning_rate(),
            "optim/skipped_steps": sum(outcome["optim/skipped_steps"] for outcome in outcomes),
            "optim/skipped_in_a_row": float(self._optimizer.num_skipped_in_a_row),
            "policy/minibatches_left_out": float(len(minibatches) - len(outcomes)),
        }
        return metrics, start_logprobs_BT

    def _minibatches(self, num_rows: int, step: int, epoch: int) -> Iterator[list[int]]:
        """A new order each epoch, a function of seed, step and epoch alone; the last minibatch may be smaller."""
        generator = np.random.default_rng(derive_seed(self._start.seed, "minibatches", step, epoch))
        order = generator.permutation(num_rows).tolist()
        for start in range(0, len(order), self._config.minibatch_size):
            yield order[start : start + self._config.minibatch_size]

    def _step(
        self, prepared: PreparedBatch, rows: Sequence[int], terms: StepTerms, start_logprobs_BT: Tensor
    ) -> dict[str, float]:
        """One optimizer step on the rows of one minibatch; at batch start it writes down the log-probabilities it meets."""
        counts = StepCounts(
            num_tokens=int(prepared.tokens.mask_BT[rows].sum()),
            num_trajectories=len(rows),
            max_completion_tokens=self._start.max_completion_tokens,
        )
        names = self._objective.metric_names
        sums_K = torch.zeros(len(names), device=self.device)  # a rank without rows contributes zeros
        self._optimizer.zero_grad()
        for part, weight in self._share.packs(prepared.tokens, self._share.deal(prepared.tokens, rows)):
            output = self._network(
                part, self._frozen_states.of(part), with_entropy=self._objective.needs_entropy, trains_trunk=terms.policy_learns
            )
            loss, metrics = self._objective.loss(output, prepared, part, counts, terms)
            (weight * loss).backward()
            if terms.at_batch_start:
                start_logprobs_BT[part.rows_B[part.row_N], part.column_N] += weight * output.logprobs_N.detach()
            sums_K += weight * torch.stack([metrics[name] for name in names]).detach()
        sum_over_ranks(sums_K, self._world_size)
        if self.shard.count == 1:  # else each backward pass has added up its own
            sum_gradients(self._optimizer.parameters.values(), self._world_size)
        metrics_of_step = dict(zip(names, sums_K.tolist(), strict=True))
        grad_norm, stepped = self._optimizer.step(metrics_of_step["optim/loss"], total_steps=self._total_steps)
        return metrics_of_step | {"optim/grad_norm": grad_norm, "optim/skipped_steps": float(not stepped)}

    def _first_deal(self, tokens: TokenBatch, *, step: int) -> list[list[int]]:
        """The rows that each rank trains on in the first epoch, so that where there is no other it needs none besides."""
        dealt: list[list[int]] = [[] for _ in range(self._world_size)]
        for rows in self._minibatches(len(tokens.segment_lengths), step, 0):
            for own, further in zip(dealt, self._share.deal(tokens, rows), strict=True):
                own += further
        return dealt


def _parameter_groups(network: PolicyWithCritic, config: PolicyLearnerConfig) -> list[ParameterGroup]:
    """What is trained of policy and critic. A critic with a trunk of its own is clipped apart: its loss shares no gradient with
    the policy's, and the larger of the two would take from the other's step."""
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    critic_clip = "critic" if config.critic.kind == "own_model" else "policy"
    parts = (
        ("policy.", config.optimizer.learning_rate, "policy"),
        ("critic_trunk.", config.optimizer.learning_rate, critic_clip),
        ("value_head.", config.critic.learning_rate, critic_clip),
    )
    groups = [
        ParameterGroup(
            parameters={name: parameter for name, parameter in trained.items() if name.startswith(prefix)},
            learning_rate=rate,
            clipped_with=clip,
        )
        for prefix, rate, clip in parts
    ]
    return [group for group in groups if group.parameters]


def _batch_metrics(
    prepared: PreparedBatch, frozen: FrozenPass, totals_B: Tensor, config: PolicyLearnerConfig
) -> dict[str, float]:
    """What the weights at batch start say of it."""
    tokens, num_tokens = prepared.tokens, prepared.tokens.num_tokens
    mask_BT, returns_BT = tokens.mask_BT, prepared.returns_BT
    weights_BT = importance_weights(frozen.old_logprobs_BT, frozen.rollout_logprobs_BT, mask_BT, config.mismatch)
    metrics = mismatch_metrics(
        frozen.old_logprobs_BT, frozen.rollout_logprobs_BT, mask_BT, cap=config.mismatch.cap, num_tokens=num_tokens
    ) | {
        # The mean of -log p over sampled tokens estimates the entropy without a pass over the vocabulary.
        "policy/sampled_entropy": -masked_mean(frozen.old_logprobs_BT, mask_BT, count=num_tokens),
        "policy/rejected_frac": masked_mean((weights_BT == 0).float(), mask_BT, count=num_tokens),
        "policy/advantage_zero_frac": masked_mean((prepared.advantages_BT == 0).float(), mask_BT, count=num_tokens),
        "score/mean": totals_B.mean(),
        "score/std": totals_B.std(correction=0),
    }
    if config.kl.is_used:
        kl_BT = frozen.old_logprobs_BT - frozen.ref_logprobs_BT
        metrics["policy/ref_kl_nats_per_completion"] = masked_sum(kl_BT, mask_BT) / len(totals_B)
    if config.critic.kind != "none":
        unexplained = masked_variance(returns_BT - prepared.old_values_BT, mask_BT, count=num_tokens)
        variance = masked_variance(returns_BT, mask_BT, count=num_tokens)
        metrics["value/explained_variance"] = 1 - unexplained / variance.clamp(min=MIN_VARIANCE)
    return {name: value.item() for name, value in metrics.items()} | {
        "rollout/completion_tokens_mean": num_tokens / len(totals_B)
    }
