"""The update does not depend on how a batch is cut: for memory, or for ranks. In float32, in this process."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from torch import Tensor

from cluster.types import ScoredBatch
from learners.policy.learner import PolicyLearner
from learners.policy.start import StartingPoint
from learners.settings.policy import PolicyLearnerConfig
from learners.settings.presets import PRESETS
from tests.learners.same_update import assert_same_gradients, assert_same_weights, recorded_gradients
from tests.learners.thread_ranks import ThreadRanks

ConfigBuilder = Callable[..., PolicyLearnerConfig]
BatchBuilder = Callable[..., ScoredBatch]
LEARNING_RATE = 1e-4  # of policy and critic

pytestmark = pytest.mark.numeric


def _learner(model: str, config: PolicyLearnerConfig, *, rank: int = 0, world_size: int = 1) -> PolicyLearner:
    start = StartingPoint(model_path=model, temperature=1.0, max_completion_tokens=8, samples_per_prompt=1, seed=0)
    return PolicyLearner(start, config, rank=rank, world_size=world_size)


def _timeless(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}


def _weights(learner: PolicyLearner) -> dict[str, Tensor]:
    """By the names that the optimizer has for them."""
    tensors = learner.snapshot().tensors.items()
    named = {name.replace("/", ".", 1): tensor for name, tensor in tensors}
    return {name: tensor for name, tensor in named.items() if name.startswith(("policy.", "critic_trunk.", "value_head."))}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"critic": {"kind": "own_model"}},
        {"critic": {"whiten_returns": True, "warmup_steps": 1}},
        {"policy_loss": {"entropy_coef": 0.01}},
        {"lora": {"rank": 8}},
        {"num_epochs": 2},
        *({"algorithm": algorithm, "minibatch_size": 8} for algorithm in PRESETS if algorithm != "ppo"),
        {"mismatch": {"correction": "sequence", "reject_sequences": True}},
        {"mismatch": {"old_logprobs": "rollout", "correction": "none"}},
    ],
)
def test_the_update_does_not_depend_on_the_micro_batches(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder, fields: dict[str, Any]
) -> None:
    results = []
    for micro_batch_tokens, chunk in ((4096, 512), (13, 3)):
        config = ppo_config(**fields, micro_batch_tokens=micro_batch_tokens, logprob_chunk_tokens=chunk)
        with recorded_gradients() as gradients:
            learner = _learner(tiny_model, config)
            metrics = [_timeless(learner.update(scored_batch(step=step, group_size=2)).metrics) for step in range(2)]
        results.append((gradients, _weights(learner), metrics))
    (expected_gradients, expected, expected_metrics), (found_gradients, found, found_metrics) = results
    assert_same_gradients(found_gradients, expected_gradients)
    assert_same_weights(found, expected, expected_gradients, learning_rate=LEARNING_RATE)
    # Means over few tokens of differences of nearly equal numbers: coarser than the gradients, which are sums.
    assert found_metrics == [pytest.approx(metrics, rel=1e-3, abs=1e-5) for metrics in expected_metrics]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"critic": {"kind": "own_model", "warmup_steps": 1}},
        {"critic": {"kind": "value_head", "warmup_steps": 1}},
        {"algorithm": "grpo", "num_epochs": 2},
    ],
)
def test_two_ranks_learn_what_one_rank_learns(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder, fields: dict[str, Any]
) -> None:
    # The decay shows whether a parameter without a gradient was stepped all the same.
    optimizer = {"learning_rate": LEARNING_RATE, "weight_decay": 0.1}

    def trained(rank: int, world_size: int) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
        config = ppo_config(**fields, optimizer=optimizer, num_workers=world_size)
        learner = _learner(tiny_model, config, rank=rank, world_size=world_size)
        # Nine trajectories: the last minibatch has one, and a rank goes without.
        metrics = [_timeless(learner.update(scored_batch(9, step=step, group_size=3)).metrics) for step in range(3)]
        return _weights(learner), metrics

    with recorded_gradients() as expected_gradients:
        expected, expected_metrics = trained(0, 1)
    with recorded_gradients() as both_gradients:
        results = ThreadRanks(2).run(lambda rank: trained(rank, 2))
    assert_same_gradients(both_gradients[::2], expected_gradients)
    for found, found_metrics in results:
        assert_same_weights(found, expected, expected_gradients, learning_rate=LEARNING_RATE)
        assert found_metrics == [pytest.approx(metrics, rel=1e-3, abs=1e-5) for metrics in expected_metrics]


def test_ranks_hold_the_same_weights_to_the_last_bit(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder
) -> None:
    def weights(rank: int) -> dict[str, Tensor]:
        learner = _learner(tiny_model, ppo_config(num_workers=2), rank=rank, world_size=2)
        learner.update(scored_batch(9))
        return _weights(learner)

    first, second = ThreadRanks(2).run(weights)
    assert [name for name, tensor in first.items() if not tensor.equal(second[name])] == []


def test_an_own_critic_takes_nothing_from_the_policys_step(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder
) -> None:
    policy_gradients = []
    for coef in (0.1, 1e4):  # the second critic's gradient is far above the limit that both are clipped to
        with recorded_gradients() as gradients:
            config = ppo_config(critic={"kind": "own_model", "coef": coef}, minibatch_size=8)
            _learner(tiny_model, config).update(scored_batch(scores=[50.0] * 4 + [-50.0] * 4))
        policy_gradients.append([{name: each for name, each in step.items() if name.startswith("policy.")} for step in gradients])
    assert_same_gradients(policy_gradients[1], policy_gradients[0])
