"""The networks of a policy-gradient learner, put together: whole on every rank, or in parts."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from actors.packing import make_packable
from learners.network.lora import add_adapter, fill_adapter
from learners.network.micro_batch import MicroBatch
from learners.network.models import (
    PolicyWithCritic,
    Reference,
    check_plain_head,
    empty_critic_trunk,
    empty_policy,
    freeze_lowest_layers,
    load_critic_trunk,
    load_policy,
    read_part,
)
from learners.network.sharding import rank_mesh, shard_network, shard_of
from learners.network.trunk import ForwardSettings, packs
from learners.settings.policy import PolicyLearnerConfig
from learners.settings.training import WorkerConfig

ReferencePass = Callable[[MicroBatch, Tensor | None], Tensor]  # a `Reference`, or what does the same


@dataclass(frozen=True, slots=True, kw_only=True)
class Networks:
    """Produced by `whole_networks` or `sharded_networks`, consumed by the learner."""

    trained: PolicyWithCritic
    reference: ReferencePass
    start_policy: ReferencePass  # evaluations measure the KL to the start; the reference itself where that never moves
    moving: Reference | None  # the reference, where it becomes a copy of the policy now and then
    are_packed: bool  # whether they are given packed rows

    @property
    def modules(self) -> list[nn.Module]:
        """All that hold weights; an adapter's reference is the policy itself."""
        return [each for each in (self.trained, self.reference, self.start_policy) if isinstance(each, nn.Module)]


def whole_networks(
    model_path: str, config: PolicyLearnerConfig, settings: ForwardSettings, device: torch.device, *, seed: int
) -> Networks:
    """Every rank loads everything. `seed`: of adapters."""
    policy = load_policy(model_path)
    freeze_lowest_layers(policy, config.num_frozen_layers, settings.compute_dtype)
    critic = config.critic
    critic_trunk = load_critic_trunk(critic.model or model_path) if critic.kind == "own_model" else None
    if config.workers.is_packing_wanted:
        _make_packable(policy, critic_trunk)
    for trunk in _adapt(policy, critic_trunk, config, settings):
        fill_adapter(trunk, seed)
    trained = PolicyWithCritic(
        policy, critic_trunk, settings, has_critic=critic.kind != "none", num_frozen_layers=config.num_frozen_layers
    ).to(device)
    are_packed = _are_packed(trained, config.workers)
    if config.lora is not None:
        return _with_itself_as_reference(trained, are_packed=are_packed)
    reference = Reference(policy, settings, num_frozen_layers=config.num_frozen_layers).to(device)
    moves = bool(config.kl.refresh_reference_steps)
    return Networks(
        trained=trained,
        reference=reference,
        start_policy=copy.deepcopy(reference) if moves else reference,
        moving=reference if moves else None,
        are_packed=are_packed,
    )


def sharded_networks(
    model_path: str, config: PolicyLearnerConfig, settings: ForwardSettings, device: torch.device, *, rank: int, seed: int
) -> Networks:
    """Every rank reads its part; call it on every rank. `seed`: of adapters.

    The states above frozen layers are not kept: which rows a rank has met before, and so which layers it would leave out, differs
    from rank to rank, and a layer is gathered by all or by none.
    """
    policy = empty_policy(model_path)
    freeze_lowest_layers(policy, config.num_frozen_layers, settings.compute_dtype)
    critic = config.critic
    critic_path = critic.model or model_path
    critic_trunk = empty_critic_trunk(critic_path) if critic.kind == "own_model" else None
    if config.workers.is_packing_wanted:
        _make_packable(policy, critic_trunk)
    adapted = _adapt(policy, critic_trunk, config, settings)
    trained = PolicyWithCritic(policy, critic_trunk, settings, has_critic=critic.kind != "none", num_frozen_layers=0)
    num_references = (0 if config.lora is not None else 1) + (1 if config.kl.refresh_reference_steps else 0)
    references = [Reference(policy, settings, num_frozen_layers=0) for _ in range(num_references)]

    shard, mesh = shard_of(config.workers, rank), rank_mesh(config.workers, device)
    dealt_out = partial(shard_network, mesh=mesh, compute_dtype=settings.compute_dtype, offload=config.workers.offload)
    dealt_out(trained, trained.trunks, calls=["ask_policy", "start_logprobs"])
    read_part(policy, model_path, shard)
    if critic_trunk is not None:
        read_part(critic_trunk, critic_path, shard)
    trained.clear_value_head()
    for trunk in adapted:
        fill_adapter(trunk, seed, shard)
    for reference in references:
        dealt_out(reference, [reference.policy.base_model])
        read_part(reference.policy, model_path, shard)
    with settings.autocast(device.type):
        trained.ask_policy(partial(check_plain_head, folder=model_path))
    are_packed = _are_packed(trained, config.workers)
    if not references:
        return _with_itself_as_reference(trained, are_packed=are_packed)
    moving = references[0] if len(references) > 1 else None
    return Networks(trained=trained, reference=references[0], start_policy=references[-1], moving=moving, are_packed=are_packed)


def _adapt(
    policy: PreTrainedModel, critic_trunk: PreTrainedModel | None, config: PolicyLearnerConfig, settings: ForwardSettings
) -> list[PreTrainedModel]:
    """The models that have got an adapter, which must still be filled; none where all weights are trained."""
    if config.lora is None:
        return []
    add_adapter(policy, config.lora, num_frozen_layers=config.num_frozen_layers, compute_dtype=settings.compute_dtype)
    if critic_trunk is None:
        return [policy]
    add_adapter(critic_trunk, config.lora, num_frozen_layers=0, compute_dtype=settings.compute_dtype)
    return [policy, critic_trunk]


def _with_itself_as_reference(trained: PolicyWithCritic, *, are_packed: bool) -> Networks:
    itself = trained.start_logprobs
    return Networks(trained=trained, reference=itself, start_policy=itself, moving=None, are_packed=are_packed)


def _make_packable(policy: PreTrainedModel, critic_trunk: PreTrainedModel | None) -> None:
    for model in (policy, critic_trunk) if critic_trunk is not None else (policy,):
        make_packable(model)


def _are_packed(trained: PolicyWithCritic, workers: WorkerConfig) -> bool:
    """Call it on every rank."""
    return trained.ask_policy(lambda _: packs(trained.trunks, workers))
