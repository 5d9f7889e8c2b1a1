"""A reward model learned from graded texts: one rank of a data-parallel group.

Shapes: B texts of the whole batch. Every rank knows all token ids and ratings, computes the same order, comparisons and loss,
and runs the network on its share of the texts only. Source: arXiv:2203.02155, section 3.5; normalisation: arXiv:1909.08593, 2.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from actors.packing import make_packable
from actors.scoring.reward_head import SCORE_OFFSET, last_token_scores, layers_to_load, start_reward_model
from cluster.errors import ConfigError
from cluster.seeding import derive_seed
from cluster.storage.policy_folders import new_folder
from learners.algorithms.preference import comparisons, preference_loss
from learners.network.activation_checkpointing import recompute_activations
from learners.network.collectives import sum_gradients, sum_over_ranks
from learners.network.lora import add_adapter, fill_adapter, is_of_adapter
from learners.network.micro_batch import Pack, PassSizes, packs_of_rank, shard
from learners.network.models import TORCH_DTYPES, empty_model, freeze_lowest_layers, read_part, write_policy
from learners.network.optimizer import GuardedAdamW, ParameterGroup
from learners.network.sharding import gathering, rank_mesh, shard_network, shard_of
from learners.network.trunk import packs
from learners.ranks.checkpoint import LearnerSnapshot, copied, copy_into, section
from learners.reward_model.records import RewardModelJob
from learners.settings.reward_model import RewardModelLearnerConfig
from learners.settings.training import WorkerConfig
from learners.weights.file import generator_weights

NUM_NORMALISATION_TEXTS = 512  # training texts that mean and standard deviation are taken over; 3 % off at most, mostly
MIN_SCORE_STD = 1e-6  # a model that scores all texts alike is left as it is


class RewardModelLearner:
    """Holds trunk, head and optimizer."""

    def __init__(self, job: RewardModelJob, *, rank: int = 0, world_size: int = 1) -> None:
        self._job = job
        self._config = job.config
        self._rank = rank
        self._world_size = world_size
        self.num_steps_done = 0
        self.num_steps = _num_steps(len(job.train.ratings), job.config)
        self._compute_dtype = TORCH_DTYPES[job.config.workers.compute_dtype]
        self.device = torch.device("cuda" if job.config.workers.num_gpus > 0 else "cpu")
        if self.device.type == "cpu":
            torch.set_num_threads(job.config.workers.num_threads)
        self.shard = shard_of(job.config.workers, rank)
        self._scorer = self._whole_scorer() if self.shard.count == 1 else self._sharded_scorer()
        self._scorer.choose_packing(job.config.workers)
        self._model = self._scorer.model
        if job.config.workers.activation_checkpointing:
            recompute_activations(self._model.base_model)
        trained = {name: parameter for name, parameter in self._model.named_parameters() if parameter.requires_grad}
        head = {name: parameter for name, parameter in trained.items() if name.startswith("score.")}
        trunk = {name: parameter for name, parameter in trained.items() if name not in head}
        rates = ((trunk, job.config.optimizer.learning_rate), (head, job.config.head_learning_rate))
        self._optimizer = GuardedAdamW(
            [ParameterGroup(parameters=part, learning_rate=rate, clipped_with="reward model") for part, rate in rates],
            job.config.optimizer,
        )

    def _whole_scorer(self) -> "TextScorer":
        config = self._config
        model = start_reward_model(self._job.model_path, dtype="float32", num_layers=config.num_layers)
        self._set_up(model)
        if config.lora is not None:
            fill_adapter(model, self._job.seed)
        return TextScorer(model.to(self.device))

    def _set_up(self, model: PreTrainedModel) -> None:
        """Before it has weights: its attention, and what of it is not trained; the head is."""
        config = self._config
        if config.workers.is_packing_wanted:
            make_packable(model)
        freeze_lowest_layers(model, config.num_frozen_layers, self._compute_dtype)
        if config.lora is not None:
            add_adapter(model, config.lora, num_frozen_layers=config.num_frozen_layers, compute_dtype=self._compute_dtype)
            model.score.requires_grad_(True)

    def _sharded_scorer(self) -> "TextScorer":
        """Every rank reads its part; call it on every rank."""
        config, path = self._config, self._job.model_path
        num_layers = layers_to_load(path, config.num_layers)
        model = empty_model(AutoModelForSequenceClassification, path, num_labels=1, num_hidden_layers=num_layers)
        self._set_up(model)
        scorer = TextScorer(model)
        mesh = rank_mesh(config.workers, self.device)
        shard_network(
            scorer,
            [model.base_model],
            mesh,
            compute_dtype=self._compute_dtype,
            offload=config.workers.offload,
            calls=["choose_packing"],
        )
        read_part(model.base_model, path, self.shard)
        torch.nn.init.zeros_(model.score.weight)
        if config.lora is not None:
            fill_adapter(model, self._job.seed, self.shard)
        return scorer

    def snapshot(self) -> LearnerSnapshot:
        """Everything that the next step depends on; of tensors, this rank's part."""
        return LearnerSnapshot(
            tensors=copied(self._learned_tensors(), under="model") | copied(self._optimizer.state(), under="optimizer"),
            numbers={"num_steps_done": self.num_steps_done, "num_optimizer_steps": self._optimizer.num_steps},
        )

    def restore(self, snapshot: LearnerSnapshot) -> None:
        """Become the learner that the snapshot was taken of."""
        copy_into(self._learned_tensors(), section(snapshot.tensors, under="model"), what="reward model")
        num_steps = snapshot.numbers["num_optimizer_steps"]
        self._optimizer.restore(section(snapshot.tensors, under="optimizer"), num_steps=num_steps)
        self.num_steps_done = snapshot.numbers["num_steps_done"]

    def _learned_tensors(self) -> dict[str, Tensor]:
        """What the start does not say; of an adapted trunk its adapter alone."""
        state: dict[str, Tensor] = self._model.state_dict()
        if self._config.lora is None:
            return state
        return {name: tensor for name, tensor in state.items() if is_of_adapter(name) or name.startswith("score.")}

    def batches(self) -> Iterator[list[int]]:
        """Texts of each optimizer step still to do: every pass over the texts is one permutation, drawn from (seed, epoch)."""
        waiting: list[int] = []
        epoch = 0
        for step in range(self.num_steps):
            while len(waiting) < self._config.batch_size:
                rng = np.random.default_rng(derive_seed(self._job.seed, "preference batches", epoch))
                waiting += rng.permutation(len(self._job.train.ratings)).tolist()
                epoch += 1
            if step >= self.num_steps_done:
                yield waiting[: self._config.batch_size]
            waiting = waiting[self._config.batch_size :]

    def update(self, batch: Sequence[int]) -> dict[str, float]:
        """One optimizer step on all comparisons in `batch`; returns its metrics, the same on every rank but for time."""
        started_s = time.monotonic()
        token_ids = [self._job.train.token_ids[text] for text in batch]
        *earlier_packs, last_pack = self._own_packs(token_ids)
        # One pack's graph at a time: the last keeps the one of its scores, the others are run again.
        with torch.no_grad():
            own_scores = self._pack_scores(earlier_packs, token_ids)
        (last_scores_N,) = self._pack_scores([last_pack], token_ids)
        scores_B = self._gathered([*earlier_packs, last_pack], [*own_scores, last_scores_N], len(batch)).requires_grad_()
        ratings_B = torch.tensor([self._job.train.ratings[text] for text in batch], dtype=torch.float64, device=self.device)
        output = preference_loss(scores_B, comparisons(ratings_B, min_rating_gap=self._config.min_rating_gap))
        # The loss needs all scores, the network this rank's only: so the gradient is cut at the scores and sent on from there.
        (loss_gradient_B,) = torch.autograd.grad(output.loss, scores_B)
        self._optimizer.zero_grad()
        last_scores_N.backward(last_pack.weight * loss_gradient_B[last_pack.rows])
        for pack in earlier_packs:
            (pack_scores_N,) = self._pack_scores([pack], token_ids)
            pack_scores_N.backward(pack.weight * loss_gradient_B[pack.rows])
        if self.shard.count == 1:  # else each backward pass has added up its own
            sum_gradients(self._optimizer.parameters.values(), self._world_size)
        loss = output.loss.item()
        grad_norm, _ = self._optimizer.step(loss, total_steps=self.num_steps)
        self.num_steps_done += 1
        return {
            "reward_model/loss": loss,
            **{name: value.item() for name, value in output.metrics.items()},
            "reward_model/texts_per_s": len(batch) / (time.monotonic() - started_s),
            "optim/grad_norm": grad_norm,
            "optim/learning_rate": self._optimizer.learning_rate(),
        }

    def accuracy(self) -> float:
        """Share of the held-out pairs whose better text has the higher score, 0..1."""
        scores = self._scores(self._job.held_out.token_ids)
        return float(np.mean([scores[better] > scores[worse] for better, worse in self._job.held_out.pairs]))

    def normalise(self) -> None:
        """Scale and shift scores to mean 0 and standard deviation 1 over training texts; no comparison changes.

        The scale goes into the head. The shift, for which such heads have no parameter, goes into config.json.
        """
        rng = np.random.default_rng(derive_seed(self._job.seed, "preference normalisation"))
        chosen = rng.permutation(len(self._job.train.ratings))[:NUM_NORMALISATION_TEXTS]
        scores = self._scores([self._job.train.token_ids[text] for text in chosen])
        std = max(float(np.std(scores)), MIN_SCORE_STD)
        with torch.no_grad():
            self._model.score.weight /= std
        setattr(self._model.config, SCORE_OFFSET, float(np.mean(scores)) / std)

    def export(self) -> None:
        """Write `job.output_dir`, which `actors.scoring.reward_model` loads: float32 safetensors, config, tokenizer.

        Rank 0 writes, where it is not there yet; call it on every rank.
        """
        with gathering(generator_weights(self._model, torch.float32)) as tensors:
            if self._rank == 0 and not self._job.output_dir.exists():
                with new_folder(self._job.output_dir) as draft:
                    write_policy(self._model, Path(self._job.model_path), draft, tensors)

    @torch.no_grad()
    def _scores(self, token_ids: Sequence[tuple[int, ...]]) -> list[float]:
        packs = self._own_packs(token_ids)  # none where there are fewer texts than ranks
        return self._gathered(packs, self._pack_scores(packs, token_ids), len(token_ids)).tolist()

    def _own_packs(self, token_ids: Sequence[tuple[int, ...]]) -> list[Pack]:
        """This rank's share of the texts, in packs that fit the token budget."""
        lengths = [len(ids) for ids in token_ids]
        return packs_of_rank(
            [shard(range(len(token_ids)), rank, self._world_size) for rank in range(self._world_size)],
            [(length,) for length in lengths],
            PassSizes(max_tokens=self._config.workers.micro_batch_tokens, is_packed=self._scorer.is_packed),
            rank=self._rank,
            in_step=self.shard.count > 1,
        )

    def _pack_scores(self, packs: Sequence[Pack], token_ids: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """scores_N of each pack, with gradient where enabled."""
        # One autocast region over all packs, so that each weight is converted once.
        with torch.autocast(self.device.type, dtype=self._compute_dtype, enabled=self._compute_dtype != torch.float32):
            return [self._scorer([token_ids[row] for row in pack.rows]) for pack in packs]

    def _gathered(self, packs: Sequence[Pack], scores: Sequence[Tensor], num_texts: int) -> Tensor:
        """scores_B of all ranks, without gradient, from those of this rank's packs."""
        scores_B = torch.zeros(num_texts, device=self.device)
        for pack, scores_N in zip(packs, scores, strict=True):
            scores_B[pack.rows] += pack.weight * scores_N.detach()
        sum_over_ranks(scores_B, self._world_size)
        return scores_B


class TextScorer(torch.nn.Module):
    """A reward model with its head as one call, which a sharded one must be."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.is_packed = False

    @torch.no_grad()
    def choose_packing(self, workers: WorkerConfig) -> None:
        """Whether `forward` packs texts. Once the model has its weights; call it on every rank."""
        self.is_packed = packs([self.model.base_model], workers)

    def forward(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """scores_N of texts."""
        return last_token_scores(self.model, token_ids, is_packed=self.is_packed)


def _num_steps(num_texts: int, config: RewardModelLearnerConfig) -> int:
    """Optimizer steps; texts that do not fill a last batch are left out."""
    if config.batch_size < config.workers.num_workers:
        raise ConfigError(
            f"batch_size={config.batch_size} leaves some of the {config.workers.num_workers} workers without a text; raise it"
        )
    num_steps = int(num_texts * config.num_epochs) // config.batch_size
    if num_steps == 0:
        raise ConfigError(
            f"{num_texts} texts x num_epochs={config.num_epochs:g} do not fill one batch; lower batch_size={config.batch_size}"
        )
    return num_steps
