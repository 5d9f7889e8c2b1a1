"""A sharded learner whose parts lie in host memory. Without a GPU, on a mesh of CPUs: the copies move nothing, and all else runs.

The settings refuse that, for it saves nothing, so the tests go past them.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy
from torch.testing import assert_close

from cluster.types import ScoredBatch
from learners.network import sharding
from learners.network.sharding import whole
from learners.policy.learner import PolicyLearner
from learners.policy.start import StartingPoint
from learners.ranks.checkpoint import checkpoint_writer, restore_newest
from learners.ranks.mailbox import CheckpointPlan
from learners.settings.policy import PolicyLearnerConfig
from tests.learners.process_ranks import ProcessRanks

pytestmark = pytest.mark.cold_start

ConfigBuilder = Callable[..., PolicyLearnerConfig]
BatchBuilder = Callable[..., ScoredBatch]
NUM_RANKS = 2
METHODS: dict[str, dict[str, Any]] = {
    "value head": {"critic": {"warmup_steps": 1, "whiten_returns": True}},
    "adapter": {"lora": {"rank": 8}, "critic": {"kind": "own_model"}},
}


@pytest.fixture(scope="module")
def ranks() -> Iterator[ProcessRanks]:
    with ProcessRanks(NUM_RANKS) as processes:
        yield processes


def learner_of(rank: int, model: str, config: PolicyLearnerConfig) -> PolicyLearner:
    start = StartingPoint(model_path=model, temperature=1.0, max_completion_tokens=8, samples_per_prompt=1, seed=0)
    return PolicyLearner(start, config, rank=rank, world_size=NUM_RANKS)


def trained(
    rank: int, num_ranks: int, model: str, config: PolicyLearnerConfig, batches: list[ScoredBatch], directory: Path
) -> tuple[list[tuple[type[OffloadPolicy], bool]], dict[str, torch.Tensor], str]:
    """What FSDP was told for each module, the weights in the end, and the checksum that was published.

    The last batch is learned after a checkpoint.
    """
    told: list[tuple[type[OffloadPolicy], bool]] = []
    fully_shard = sharding.fully_shard

    def recording(module: torch.nn.Module, *, offload_policy: OffloadPolicy, **others: Any) -> torch.nn.Module:
        is_pinned = isinstance(offload_policy, CPUOffloadPolicy) and offload_policy.pin_memory
        told.append((type(offload_policy), is_pinned))
        return fully_shard(module, offload_policy=offload_policy, **others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "fully_shard", recording)
        learner = learner_of(rank, model, config)
    *before, last = batches
    for batch in before:
        learner.update(batch)
    plan = CheckpointPlan(directory=directory, keep=1, facts={"model": "abc"})
    writer = checkpoint_writer(plan, learner.shard, rank=rank)
    assert writer is not None
    writer.begin(learner.num_steps_done, learner.snapshot(), policy_version=0)
    report = writer.finish()
    assert report is not None
    assert report.problem == ""
    torch.distributed.barrier()  # both parts are written
    resumed = learner_of(rank, model, config)
    restore_newest(resumed, plan, rank=rank, world_size=NUM_RANKS)
    for each in (learner, resumed):
        each.update(last)
    weights, again = (
        {name: whole(parameter.detach()).clone() for name, parameter in each._network.named_parameters()}
        for each in (learner, resumed)
    )
    assert [name for name, weight in weights.items() if not weight.equal(again[name])] == []
    published = learner.publish(directory / "published", "float32", probe=(1, 2, 3))
    return told, weights, published.checksum


@pytest.mark.parametrize("method", METHODS)
def test_an_offloaded_learner_learns_resumes_and_publishes_what_another_does(
    ranks: ProcessRanks,
    tiny_model: str,
    ppo_config: ConfigBuilder,
    scored_batch: BatchBuilder,
    tmp_path: Path,
    method: str,
) -> None:
    config = ppo_config(**METHODS[method], num_workers=NUM_RANKS, sharding="full", minibatch_size=8)
    offloaded = config.model_copy(update={"workers": config.workers.model_copy(update={"offload": "cpu"})})
    batches = [scored_batch(9, step=step, group_size=3) for step in range(3)]
    plain, found = (
        ranks.run(trained, NUM_RANKS, tiny_model, each, batches, tmp_path / name)
        for name, each in (("plain", config), ("offloaded", offloaded))
    )
    for (told, weights, checksum), (told_plain, expected, expected_checksum) in zip(found, plain, strict=True):
        assert set(told_plain) == {(OffloadPolicy, False)}
        assert told == [(CPUOffloadPolicy, False)] * len(told_plain)  # layers and roots; nothing is pinned without a device
        for name, weight in expected.items():
            assert_close(weights[name], weight, atol=0, rtol=0)
        assert checksum == expected_checksum
