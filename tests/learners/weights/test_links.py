"""A link over devices that loses a generator, its ranks, or both: it is made anew, and the same version is sent again.

Pool, handle, sender and generator are the real ones, and so are vLLM's engines at both ends. No GPU was available: what
`fake_transport` stands for has never run.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from actors.config import SupervisionConfig
from actors.generation.generator import HeldWeights
from actors.generation.rollout_pool import GeneratorKind, RolloutPool
from cluster.errors import LearnerRestartedError, StaleLinkError
from cluster.types import PublishedWeights, SentWeights
from learners.policy import commands
from learners.policy.handle import LearnerFolders, PolicyLearnerHandle
from learners.policy.start import StartingPoint
from learners.ranks.handle import RanksHandle
from learners.ranks.mailbox import Call, CheckpointPlan
from learners.settings.policy import PolicyLearnerConfig
from learners.weights.device import WeightSender
from learners.weights.file import untied_tensors
from learners.weights.link import GeneratorLink, LinkPlan
from tests.learners.weights.fake_transport import FakeHandle, Transport

backends = pytest.mark.parametrize("backend", ["nccl", "ipc"])


class Rank:
    """The part of a `PolicyLearner` that a link uses."""

    def __init__(self, policy: LlamaForCausalLM, version: int) -> None:
        self.policy, self.version = policy, version
        self.sender: WeightSender | None = None

    @property
    def link_epoch(self) -> int:
        return 0 if self.sender is None else self.sender.epoch

    def connect(self, link: GeneratorLink) -> None:
        self.sender = WeightSender(self.policy, link, dtype=torch.bfloat16, rank=0)

    def send_weights(self) -> SentWeights:
        assert self.sender is not None, "a rank that has started again connects before it sends"
        return self.sender.send(policy_version=self.version)


class Roles:
    """Two generators and a learner of one rank, connected."""

    def __init__(self, backend: Any, monkeypatch: pytest.MonkeyPatch, config: PolicyLearnerConfig) -> None:
        size = {"vocab_size": 8, "hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 1}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
        self.policy = LlamaForCausalLM(LlamaConfig(**size, **heads, tie_word_embeddings=True))
        shapes = {name: tuple(tensor.shape) for name, tensor in untied_tensors(self.policy).items()}
        self.transport = Transport(backend, shapes)
        self.transport.install(monkeypatch)
        self.rank = Rank(self.policy, 1)
        self.is_restarting_in: Callable[..., Any] | None = None
        monkeypatch.setattr(RanksHandle, "_new_mailbox", lambda handle: None)
        monkeypatch.setattr(RanksHandle, "call", lambda handle, call, meanwhile=None: self._execute(call))
        self.learner = PolicyLearnerHandle(
            StartingPoint(model_path="folder", temperature=1.0, max_completion_tokens=8, samples_per_prompt=1, seed=0),
            config,
            LearnerFolders(storage=Path("storage"), weights=Path("weights"), weights_dtype="bfloat16"),
            CheckpointPlan(directory=Path("checkpoints"), keep=1, facts={}),
        )
        kind = GeneratorKind(start=self.transport.start, num_replicas=2, max_num_sequences=4)
        self.pool = RolloutPool([kind], supervision=SupervisionConfig(), note=lambda line: None)
        self.learner.connect(
            LinkPlan(
                backend=backend,
                generators=lambda: tuple(self.pool.actors.values()),
                dtype="bfloat16",
                deadline_s=30.0,
            )
        )
        self.pool.feed_new_ones(self.learner.send_again)

    def publish(self) -> PublishedWeights:
        weights = self.learner.publish()
        self.pool.publish(weights)
        while len(self.pool.actors) < 2:
            self.pool._generators.finished([])  # as any call of the pool does, in which replacements join
        return weights

    def restart_ranks(self, *, version: int) -> None:
        self.rank = Rank(self.policy, version)

    def held(self) -> list[HeldWeights]:
        return [ray.get(generator.held_weights.remote()) for generator in self.pool.actors.values()]

    def _execute(self, call: Call) -> Any:
        if call.function is self.is_restarting_in:
            self.is_restarting_in = None
            self.restart_ranks(version=0)
            raise LearnerRestartedError("the ranks were lost")
        return call.function(SimpleNamespace(rank=0, learner=self.rank), *call.arguments)


@pytest.fixture
def roles(backend: str, monkeypatch: pytest.MonkeyPatch, ppo_config: Callable[..., PolicyLearnerConfig]) -> Roles:
    return Roles(backend, monkeypatch, ppo_config())


def expected(weights: PublishedWeights) -> list[HeldWeights]:
    return [HeldWeights(policy_version=weights.policy_version, checksum=weights.checksum)] * 2


@backends
def test_a_generator_lost_in_an_update_is_replaced_and_sent_the_same_version(roles: Roles, backend: str) -> None:
    roles.transport.handles[0].dies_in = "update_weights"
    weights = roles.publish()
    assert not roles.transport.handles[0].is_alive
    assert len(roles.transport.handles) == 3
    assert roles.held() == expected(weights)


@backends
def test_the_next_publication_reaches_old_and_new_generators_over_one_link(roles: Roles, backend: str) -> None:
    roles.transport.handles[0].dies_in = "update_weights"
    roles.publish()
    roles.rank.version = 2
    weights = roles.publish()
    assert weights.policy_version == 2
    assert roles.held() == expected(weights)
    assert roles.rank.link_epoch == 3  # to both, to the new one alone, to both again


@backends
def test_ranks_that_have_started_again_connect_before_they_publish(roles: Roles, backend: str) -> None:
    roles.publish()
    roles.restart_ranks(version=0)
    weights = roles.publish()
    assert weights.policy_version == 0
    assert roles.held() == expected(weights)
    assert roles.rank.link_epoch == 2
    for generator in roles.transport.handles:
        assert generator.engine.calls.count("leave") == 1  # the group of the lost rank


@backends
def test_a_publication_over_an_unchanged_link_connects_nobody(roles: Roles, backend: str) -> None:
    for _ in range(2):
        roles.publish()
    assert [generator.engine.calls.count("init") for generator in roles.transport.handles] == [1, 1]


@backends
def test_a_generator_and_the_ranks_may_be_lost_together(roles: Roles, backend: str) -> None:
    roles.publish()
    roles.restart_ranks(version=0)
    roles.transport.handles[1].is_alive = False
    weights = roles.publish()
    assert weights.policy_version == 0
    assert roles.held() == expected(weights)


@backends
def test_ranks_lost_in_the_midst_of_an_update_cost_the_engines_that_had_begun_it(roles: Roles, backend: str) -> None:
    roles.publish()
    epoch = roles.rank.link_epoch
    for generator in roles.transport.handles:
        ray.get(generator.start_weight_update.remote(epoch))
    roles.restart_ranks(version=0)
    weights = roles.publish()
    assert [generator.is_alive for generator in roles.transport.handles] == [False, False, True, True]
    assert roles.held() == expected(weights)


@backends
def test_a_rank_of_an_older_link_changes_nothing(roles: Roles, backend: str) -> None:
    roles.publish()
    zombie = roles.rank
    roles.restart_ranks(version=3)
    weights = roles.publish()
    with pytest.raises(StaleLinkError, match="link 1 to the learner was replaced by link 2"):
        zombie.send_weights()
    assert roles.held() == expected(weights)
    assert all(generator.is_alive for generator in roles.transport.handles)


@backends
def test_ranks_lost_while_a_new_generator_is_fed_are_told_of_at_the_next_call(roles: Roles, backend: str) -> None:
    weights = roles.publish()
    newcomer: FakeHandle = roles.transport.start()
    roles.is_restarting_in = commands.send_weights
    assert roles.learner.send_again(newcomer).policy_version == 0 != weights.policy_version
    with pytest.raises(LearnerRestartedError, match="the ranks were lost"):
        roles.learner.publish()
    assert roles.learner.publish().policy_version == 0


@backends
def test_ranks_that_went_back_unnoticed_are_noticed_when_a_new_generator_is_fed(roles: Roles, backend: str) -> None:
    roles.publish()
    roles.restart_ranks(version=0)
    roles.learner.send_again(roles.transport.start())
    with pytest.raises(LearnerRestartedError, match="the learner's ranks hold version 0, not 1"):
        roles.learner.publish()
