"""The networks of a policy-gradient learner, put together: whole on every rank, or in parts."""

import copy
from dataclasses import dataclass
from functools import partial

import torch

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
from learners.network.trunk import ForwardSettings
from learners.settings.policy import PolicyLearnerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Networks:
    """Produced by `whole_networks` or `sharded_networks`, consumed by the learner."""

    trained: PolicyWithCritic
    reference: Reference
    start_policy: Reference  # evaluations measure the KL to the start; the reference itself where that never moves


def whole_networks(model_path: str, config: PolicyLearnerConfig, settings: ForwardSettings, device: torch.device) -> Networks:
    """Every rank loads everything."""
    policy = load_policy(model_path)
    freeze_lowest_layers(policy, config.num_frozen_layers, settings.compute_dtype)
    critic = config.critic
    critic_trunk = load_critic_trunk(critic.model or model_path) if critic.kind == "own_model" else None
    trained = PolicyWithCritic(
        policy, critic_trunk, settings, has_critic=critic.kind != "none", num_frozen_layers=config.num_frozen_layers
    ).to(device)
    reference = Reference(policy, settings, num_frozen_layers=config.num_frozen_layers).to(device)
    start_policy = copy.deepcopy(reference) if config.kl.refresh_reference_steps else reference
    return Networks(trained=trained, reference=reference, start_policy=start_policy)


def sharded_networks(
    model_path: str, config: PolicyLearnerConfig, settings: ForwardSettings, device: torch.device, *, rank: int
) -> Networks:
    """Every rank reads its part; call it on every rank.

    The states above frozen layers are not kept: which rows a rank has met before, and so which layers it would leave out, differs
    from rank to rank, and a layer is gathered by all or by none.
    """
    policy = empty_policy(model_path)
    freeze_lowest_layers(policy, config.num_frozen_layers, settings.compute_dtype)
    critic = config.critic
    critic_path = critic.model or model_path
    critic_trunk = empty_critic_trunk(critic_path) if critic.kind == "own_model" else None
    trained = PolicyWithCritic(policy, critic_trunk, settings, has_critic=critic.kind != "none", num_frozen_layers=0)
    num_references = 2 if config.kl.refresh_reference_steps else 1
    references = [Reference(policy, settings, num_frozen_layers=0) for _ in range(num_references)]

    shard, mesh = shard_of(config.workers, rank), rank_mesh(config.workers, device)
    dealt_out = partial(shard_network, mesh=mesh, compute_dtype=settings.compute_dtype)
    dealt_out(trained, trained.trunks, calls=["ask_policy"])
    read_part(policy, model_path, shard)
    if critic_trunk is not None:
        read_part(critic_trunk, critic_path, shard)
    trained.clear_value_head()
    for reference in references:
        dealt_out(reference, [reference.policy.base_model])
        read_part(reference.policy, model_path, shard)
    with settings.autocast(device.type):
        trained.ask_policy(partial(check_plain_head, folder=model_path))
    return Networks(trained=trained, reference=references[0], start_policy=references[-1])
