"""FSDP2 over NCCL: a learner in parts on one and on all devices learns what a whole one learns. In float32."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from cluster.types import ScoredBatch
from learners.settings.policy import PolicyLearnerConfig
from tests.gpu.devices import GIB, needs_devices, num_devices
from tests.learners.process_ranks import ProcessRanks
from tests.learners.test_sharded_learners import Weights, learner_of, trained

ConfigBuilder = Callable[..., PolicyLearnerConfig]
BatchBuilder = Callable[..., ScoredBatch]

METHODS: dict[str, dict[str, Any]] = {
    "ppo": {},
    "own critic": {"critic": {"kind": "own_model"}},
    "adapter": {"lora": {"rank": 8}},
}

WAYS: tuple[dict[str, str], ...] = ({"sharding": "none"}, {"sharding": "full"}, {"sharding": "full", "offload": "cpu"})


@pytest.fixture(scope="module")
def ranks() -> Iterator[ProcessRanks]:
    with ProcessRanks(num_devices(), backend="cpu:gloo,cuda:nccl") as processes:  # of offloaded parts sums are made on the host
        yield processes


def config_of(ppo_config: ConfigBuilder, method: str, **workers: object) -> PolicyLearnerConfig:
    optimizer = {"learning_rate": 1e-4, "weight_decay": 0.1, "eps": 1e-4}  # an eps far above rounding, as for gloo
    return ppo_config(**METHODS[method], **workers, num_gpus=1, optimizer=optimizer, minibatch_size=8, micro_batch_tokens=24)


def assert_same(found: Weights, expected: Weights, start: Weights) -> None:
    assert max(float((expected[name] - weight).abs().max()) for name, weight in start.items()) > 1e-4  # something was learned
    for name, weight in expected.items():
        # Sums of other parts, in float32, over steps of 1e-4.
        assert_close(found[name], weight, atol=1e-6, rtol=0, msg=lambda text, name=name: f"{name}: {text}", check_device=False)


@pytest.mark.parametrize("offload", ["none", "cpu"])
@pytest.mark.parametrize("method", METHODS)
def test_one_device_in_one_part(
    ranks: ProcessRanks, tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder, method: str, offload: str
) -> None:
    """The settings refuse one part, for it saves nothing; here it shows FSDP2 without a second device."""
    batches = [scored_batch(9, step=step, group_size=3) for step in range(3)]
    plain = config_of(ppo_config, method)
    sharded = plain.model_copy(update={"workers": plain.workers.model_copy(update={"sharding": "full", "offload": offload})})
    [(start, _)] = ranks.run(trained, 1, tiny_model, plain, [])
    [(expected, _)] = ranks.run(trained, 1, tiny_model, plain, batches)
    [(found, _)] = ranks.run(trained, 1, tiny_model, sharded, batches)
    assert_same(found, expected, start)


@needs_devices(2)
@pytest.mark.parametrize("method", METHODS)
def test_all_devices_hold_parts_of_one_model(
    ranks: ProcessRanks, tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder, method: str
) -> None:
    batches = [scored_batch(9, step=step, group_size=3) for step in range(3)]
    count = num_devices()
    [(start, _)] = ranks.run(trained, 1, tiny_model, config_of(ppo_config, method), [])
    [(expected, _)] = ranks.run(trained, 1, tiny_model, config_of(ppo_config, method), batches)
    for way in WAYS:
        config = config_of(ppo_config, method, num_workers=count, **way)
        for found, _ in ranks.run(trained, count, tiny_model, config, batches):
            assert_same(found, expected, start)


@needs_devices(2)
def test_parts_of_smollm2_take_less_memory(
    ranks: ProcessRanks, smollm2: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder, record_property: Callable[..., None]
) -> None:
    count, batch = num_devices(), scored_batch(8)
    peaks = []
    for way in WAYS:
        config = ppo_config(num_gpus=1, num_workers=count, compute_dtype="bfloat16", minibatch_size=8, **way)
        peaks.append(max(ranks.run(peak_only, count, smollm2, config, batch)))
        record_property(" ".join(f"{key}={value}" for key, value in way.items()), f"{peaks[-1]:.2f} GiB a rank")
    whole, parts, offloaded = peaks
    assert whole > parts > offloaded


def peak_only(rank: int, num_ranks: int, model: str, config: PolicyLearnerConfig, batch: ScoredBatch) -> float:
    torch.cuda.reset_peak_memory_stats()
    learner_of(rank, num_ranks, model, config).update(batch)
    return torch.cuda.max_memory_allocated() / GIB
