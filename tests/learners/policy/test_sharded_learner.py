"""A learner in parts on several ranks learns what a whole one learns. In float32, over gloo, in processes."""

from collections.abc import Callable, Iterator, Sequence

import pytest
from torch import Tensor
from torch.testing import assert_close

from cluster.types import ScoredBatch
from learners.network.sharding import whole
from learners.policy.learner import PolicyLearner
from learners.policy.start import StartingPoint
from learners.settings.policy import PolicyLearnerConfig
from tests.learners.process_ranks import ProcessRanks

ConfigBuilder = Callable[..., PolicyLearnerConfig]
BatchBuilder = Callable[..., ScoredBatch]
Weights = dict[str, Tensor]

pytestmark = pytest.mark.numeric

SHARDED: dict[str, Any] = {"num_workers": 4, "sharding": "full"}
WAYS: dict[str, dict[str, Any]] = {
    "one rank": {},
    "replicated": {"num_workers": 4},
    "sharded": SHARDED,
    "hybrid": {"num_workers": 4, "sharding": "hybrid", "shard_group_size": 2},
}
METHODS: dict[str, dict[str, Any]] = {
    "ppo": {"critic": {"warmup_steps": 1, "whiten_returns": True}},
    "own critic": {"critic": {"kind": "own_model"}},
    "grpo with KL": {"algorithm": "grpo"},
    "frozen layer": {"num_frozen_layers": 1},
}


@pytest.fixture(scope="module")
def ranks() -> Iterator[ProcessRanks]:
    with ProcessRanks(4) as processes:
        yield processes


def learner_of(rank: int, num_ranks: int, model: str, config: PolicyLearnerConfig) -> PolicyLearner:
    start = StartingPoint(model_path=model, temperature=1.0, max_completion_tokens=8, samples_per_prompt=1, seed=0)
    return PolicyLearner(start, config, rank=rank, world_size=num_ranks)


def weights_of(learner: PolicyLearner) -> Weights:
    """Whole; call it on every rank."""
    return {name: whole(parameter.detach()).clone() for name, parameter in learner._network.named_parameters()}


def trained(
    rank: int, num_ranks: int, model: str, config: PolicyLearnerConfig, batches: Sequence[ScoredBatch]
) -> tuple[Weights, list[dict[str, float]]]:
    learner = learner_of(rank, num_ranks, model, config)
    metrics = [dict(learner.update(batch).metrics) for batch in batches]
    return weights_of(learner), [
        {name: value for name, value in each.items() if not name.startswith("time/")} for each in metrics
    ]


@pytest.fixture(scope="module")
def config_of(ppo_config: ConfigBuilder) -> Callable[[str, str], PolicyLearnerConfig]:
    """Of a method and a way to run it. Packs of few rows, so that ranks have different numbers of them."""

    def build(method: str, way: str) -> PolicyLearnerConfig:
        # An eps far above rounding: Adam divides gradients that are nothing but rounding by themselves, for steps of full size.
        optimizer = {"learning_rate": 1e-4, "weight_decay": 0.1, "eps": 1e-4}
        return ppo_config(**METHODS[method], **WAYS[way], optimizer=optimizer, minibatch_size=8, micro_batch_tokens=24)

    return build


@pytest.fixture(scope="module")
def batches(scored_batch: BatchBuilder) -> list[ScoredBatch]:
    """Nine trajectories each: the last minibatch has one, and three ranks of four go without."""
    return [scored_batch(9, step=step, group_size=3) for step in range(5)]


@pytest.mark.parametrize("method", METHODS)
def test_five_updates_end_in_the_same_weights_however_the_model_lies(
    ranks: ProcessRanks,
    tiny_model: str,
    config_of: Callable[[str, str], PolicyLearnerConfig],
    batches: list[ScoredBatch],
    method: str,
) -> None:
    start, _ = trained(0, 1, tiny_model, config_of(method, "one rank"), [])
    expected, expected_metrics = trained(0, 1, tiny_model, config_of(method, "one rank"), batches)
    moved = max(float((expected[name] - weight).abs().max()) for name, weight in start.items())
    assert moved > 1e-4  # a hundred times what may differ
    for way in ("replicated", "sharded", "hybrid"):
        config = config_of(method, way)
        for found, metrics in ranks.run(trained, config.workers.num_workers, tiny_model, config, batches):
            assert found.keys() == expected.keys()
            for name, weight in expected.items():
                assert_close(
                    found[name], weight, atol=1e-6, rtol=0, msg=lambda text, name=name, way=way: f"{way}, {name}: {text}"
                )
            assert metrics == [pytest.approx(each, rel=1e-3, abs=1e-5) for each in expected_metrics]
