"""A learner that packs its rows learns what one that pads them learns. In float32, in this process."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel

from actors.packing import make_packable
from cluster.errors import ConfigError
from cluster.types import ScoredBatch
from learners.network.trunk import packs
from learners.policy.learner import PolicyLearner
from learners.policy.start import StartingPoint
from learners.settings.policy import PolicyLearnerConfig
from learners.settings.training import WorkerConfig
from tests.learners.same_update import assert_same_gradients, recorded_gradients

ConfigBuilder = Callable[..., PolicyLearnerConfig]
BatchBuilder = Callable[..., ScoredBatch]

METHODS: dict[str, dict[str, Any]] = {
    "value head": {"critic": {"warmup_steps": 1, "whiten_returns": True}},
    "own critic": {"critic": {"kind": "own_model"}},
    "GRPO with KL": {"algorithm": "grpo"},
    "entropy": {"policy_loss": {"entropy_coef": 0.01}},
    "frozen layer, two epochs": {"num_frozen_layers": 1, "num_epochs": 2},
    "activations computed again": {"activation_checkpointing": True},
    "adapter": {"lora": {"rank": 8}, "critic": {"kind": "own_model"}},
}


def learner_of(model: str, config: PolicyLearnerConfig) -> PolicyLearner:
    start = StartingPoint(model_path=model, temperature=1.0, max_completion_tokens=8, samples_per_prompt=1, seed=0)
    return PolicyLearner(start, config)


def weights_of(learner: PolicyLearner) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in learner._network.named_parameters()}


def assert_close_by_name(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        # Sums in another order; eps keeps Adam from dividing rounding by rounding.
        assert_close(found[name], weight, atol=1e-6, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.numeric
@pytest.mark.parametrize("method", METHODS)
def test_packed_updates_end_in_the_weights_of_padded_ones(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder, method: str
) -> None:
    results = []
    for packing in ("padded", "packed"):
        fields = {"optimizer": {"learning_rate": 1e-4, "eps": 1e-4}, "minibatch_size": 8, "micro_batch_tokens": 24}
        with recorded_gradients() as gradients:
            learner = learner_of(tiny_model, ppo_config(**METHODS[method], **fields, packing=packing))
            metrics = [dict(learner.update(scored_batch(9, step=step, group_size=3)).metrics) for step in range(3)]
        timeless = [{name: each[name] for name in each if not name.startswith("time/")} for each in metrics]
        results.append((gradients, weights_of(learner), timeless))
    (expected_gradients, expected, expected_metrics), (gradients, found, metrics) = results
    assert_same_gradients(gradients, expected_gradients)
    assert_close_by_name(found, expected)
    assert metrics == [pytest.approx(each, rel=1e-3, abs=1e-5) for each in expected_metrics]


def test_packed_passes_run_on_no_padding(tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder) -> None:
    batch = scored_batch(9)
    lengths = [length for scored in batch.groups for sample in scored.samples for length in sample.segment_lengths]
    ran: dict[str, list[int]] = {}
    for packing in ("padded", "packed"):
        learner = learner_of(tiny_model, ppo_config(packing=packing))
        sizes = ran[packing] = []
        learner._network.policy.model.embed_tokens.register_forward_pre_hook(
            lambda module, given, sizes=sizes: sizes.append(given[0].numel())
        )
        learner.completion_logprobs([scored.group for scored in batch.groups])
    assert ran["packed"] == [sum(lengths)]
    assert ran["padded"] == [len(lengths) * max(lengths)]


def test_what_may_pack_packs_on_a_gpu_alone() -> None:
    wanted = {
        (packing, num_gpus): WorkerConfig(packing=packing, num_gpus=num_gpus).is_packing_wanted
        for packing in ("auto", "packed", "padded")
        for num_gpus in (0, 0.5)
    }
    assert [case for case, is_wanted in wanted.items() if is_wanted] == [("auto", 0.5), ("packed", 0), ("packed", 0.5)]


def test_an_architecture_that_cannot_pack_is_refused_or_padded(caplog: pytest.LogCaptureFixture) -> None:
    """One of its layers carries a state from token to token."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "vocab_size": 32, "head_dim": 8}
    fields = {"num_attention_heads": 2, "num_key_value_heads": 2, "layer_types": ["linear_attention", "full_attention"]}
    trunk = AutoModel.from_config(AutoConfig.for_model("qwen3_next", **sizes, **fields), attn_implementation="sdpa")
    make_packable(trunk)
    with pytest.raises(
        ConfigError, match="Qwen3NextModel does not keep packed sequences apart; set learner.workers.packing=padded"
    ):
        packs([trunk], WorkerConfig(packing="packed"))
    with caplog.at_level(logging.WARNING, logger="rayward"):
        assert not packs([trunk], WorkerConfig(num_gpus=1))
    assert "Qwen3NextModel does not keep packed sequences apart, so forward passes are padded" in caplog.text
    assert not packs([trunk], WorkerConfig())
