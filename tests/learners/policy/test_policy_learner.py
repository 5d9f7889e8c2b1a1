"""The learner on the tiny model, in float32, in this process."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from cluster.errors import ConfigError, DataError
from cluster.types import Sample, ScoredBatch, StepScore, TrajectoryGroup
from learners.policy.batch import PreparedBatch
from learners.policy.learner import PolicyLearner
from learners.policy.preparation import prepare
from learners.policy.start import StartingPoint
from learners.policy.state import LearnerState
from learners.settings.policy import KLConfig, PolicyLearnerConfig
from learners.settings.presets import PRESETS

ConfigBuilder = Callable[..., PolicyLearnerConfig]
BatchBuilder = Callable[..., ScoredBatch]


def _learner(model: str, config: PolicyLearnerConfig, *, temperature: float = 1.0) -> PolicyLearner:
    start = StartingPoint(model_path=model, temperature=temperature, max_completion_tokens=8, samples_per_prompt=1, seed=0)
    return PolicyLearner(start, config)


def _weights(learner: PolicyLearner, directory: Path) -> dict[str, Tensor]:
    return load_file(learner.publish(directory, "float32").path)


def _samples(batch: ScoredBatch) -> list[Sample]:
    return [sample for scored in batch.groups for sample in scored.samples]


def _groups(batch: ScoredBatch) -> list[TrajectoryGroup]:
    return [scored.group for scored in batch.groups]


def test_frozen_layers_keep_their_weights_and_the_rest_learns(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder, tmp_path: Path
) -> None:
    learner = _learner(tiny_model, ppo_config(num_frozen_layers=1))
    before = _weights(learner, tmp_path / "before")
    learner.update(scored_batch())
    after = _weights(learner, tmp_path / "after")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith("model.layers.1.")} | {"model.norm.weight"}


def test_the_version_counts_optimizer_steps(tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder) -> None:
    learner = _learner(tiny_model, ppo_config(num_epochs=3))
    assert learner.policy_version == 0
    assert learner.update(scored_batch()).policy_version == 6  # 3 epochs x 2 minibatches


@pytest.mark.numeric
def test_logprobs_are_those_of_the_whole_model_at_the_temperature(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder
) -> None:
    groups = _groups(scored_batch())
    logprobs = _learner(tiny_model, ppo_config(micro_batch_tokens=20), temperature=0.7).completion_logprobs(groups)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    segments = [segment for group in groups for tokens in group.tokens.fetch() for segment in tokens.segments]
    for segment, own in zip(segments, logprobs, strict=True):
        token_ids = torch.tensor(segment.token_ids, dtype=torch.int64)
        with torch.no_grad():
            logits = model(token_ids[None]).logits[0]
        expected = torch.log_softmax(logits[:-1] / 0.7, -1).gather(1, token_ids[1:, None]).squeeze(1)
        assert_close(torch.tensor(own), expected[segment.action_mask[1:].copy()], atol=1e-5, rtol=1e-5)


@pytest.mark.numeric
@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_the_start_is_its_own_reference(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder, compute_dtype: str
) -> None:
    config = ppo_config()
    workers = config.workers.model_copy(update={"compute_dtype": compute_dtype})
    learner = _learner(tiny_model, config.model_copy(update={"workers": workers}))
    assert learner.start_kl(scored_batch().groups) == (0.0,) * 8
    first, second = (learner.update(scored_batch(step=step)).metrics for step in range(2))
    assert first["policy/ref_kl_nats_per_completion"] == 0
    assert second["policy/ref_kl_nats_per_completion"] != 0


@pytest.mark.numeric
def test_rewarded_tokens_become_likelier(tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder) -> None:
    learner = _learner(tiny_model, ppo_config(minibatch_size=8, num_epochs=4, learning_rate=1e-3))
    batch = scored_batch(scores=[4.0] * 4 + [-4.0] * 4)
    before: list[float] = []
    after: list[float] = []
    for record in (before, after):
        record += [sum(logprobs) / len(logprobs) for logprobs in learner.completion_logprobs(_groups(batch))]
        learner.update(batch)
    gains = [b - a for a, b in zip(before, after, strict=True)]
    assert min(gains[:4]) > 0 > max(gains[4:])


@pytest.mark.parametrize("whiten", [False, True])
def test_a_score_beyond_float32_changes_no_weight(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder, tmp_path: Path, whiten: bool
) -> None:
    learner = _learner(tiny_model, ppo_config(advantage={"whiten": whiten}, minibatch_size=8))
    before = _weights(learner, tmp_path / "before")
    result = learner.update(scored_batch(scores=[1e39] + [0.0] * 7))
    assert result.metrics["optim/skipped_steps"] == 1
    assert result.policy_version == 0
    after = _weights(learner, tmp_path / "after")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert learner.update(scored_batch()).metrics["optim/skipped_steps"] == 0


@pytest.mark.numeric
def test_equal_scores_without_a_critic_error_move_nothing_much(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder
) -> None:
    metrics = _learner(tiny_model, ppo_config(advantage={"gae_lambda": 1.0})).update(scored_batch(scores=[0.0] * 8)).metrics
    # The value head starts at zero and every return is zero: no advantage, no value error, no gradient.
    assert metrics["optim/grad_norm"] == pytest.approx(0, abs=1e-6)
    assert metrics["value/loss"] == 0


@pytest.mark.parametrize(("truncation", "score_mean_of_cut"), [("terminal", 2.0), ("penalty", -1.0)])
def test_a_cut_completion_gets_its_configured_score(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder, truncation: str, score_mean_of_cut: float
) -> None:
    config = ppo_config(
        reward={"truncation": truncation, "truncation_score": -1.0},
        critic={"clip_eps": None},
        advantage={"whiten": False, "gae_lambda": 1.0},
        kl={"coef": 0.0},
        minibatch_size=8,
    )
    batch = scored_batch(scores=[2.0] * 8)
    metrics = _learner(tiny_model, config).update(batch).metrics
    cut = [sample.finish_reason == "length" for sample in _samples(batch)]
    lengths = [sample.num_tokens for sample in _samples(batch)]
    # Values are 0, so with lambda = gamma = 1 each token's return is its completion's score; value loss: mean square / 2.
    squares = sum(length * (score_mean_of_cut if was_cut else 2.0) ** 2 for length, was_cut in zip(lengths, cut, strict=True))
    assert metrics["value/loss"] == pytest.approx(squares / sum(lengths) / 2)


def test_while_the_critic_warms_up_the_policy_stays(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder, tmp_path: Path
) -> None:
    learner = _learner(tiny_model, ppo_config(critic={"warmup_steps": 1, "learning_rate": 0.01}))
    before = _weights(learner, tmp_path / "0")
    first = learner.update(scored_batch()).metrics
    warm = _weights(learner, tmp_path / "1")
    assert all(torch.equal(before[name], warm[name]) for name in before)
    assert first["value/loss"] > 0
    second = learner.update(scored_batch(step=1)).metrics
    assert second["value/explained_variance"] != first["value/explained_variance"]  # the head has learned meanwhile
    after = _weights(learner, tmp_path / "2")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_critic_in_the_unit_of_the_returns_has_its_loss_in_their_variances(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder
) -> None:
    scores = [100.0 + index for index in range(8)]
    batch = scored_batch(scores=scores)
    losses = {}
    for whiten in (False, True):
        config = ppo_config(
            critic={"whiten_returns": whiten, "clip_eps": None},
            advantage={"gae_lambda": 1.0},
            reward={"truncation": "terminal"},
            kl={"coef": 0.0},
            minibatch_size=8,
        )
        losses[whiten] = _learner(tiny_model, config).update(batch).metrics["value/loss"]
    # Every token's return is its completion's score, and the value is 0 in either unit.
    returns = [score for score, each in zip(scores, _samples(batch), strict=True) for _ in range(each.num_tokens)]
    mean = sum(returns) / len(returns)
    variance = sum((value - mean) ** 2 for value in returns) / len(returns)
    assert losses[False] == pytest.approx(sum(value**2 for value in returns) / len(returns) / 2, rel=1e-4)
    assert losses[True] == pytest.approx(losses[False] / variance, rel=1e-4)


def test_the_score_and_its_moments_count_the_scores_of_steps(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder
) -> None:
    """A process reward gives everything to steps and nothing to the end."""
    outcome = scored_batch(scores=[1.0, 3.0] * 4)
    process = replace(
        outcome,
        groups=tuple(
            replace(
                scored,
                rewards=tuple(
                    replace(reward, steps=(StepScore(token_index=0, score=reward.total),)) for reward in scored.rewards
                ),
            )
            for scored in outcome.groups
        ),
    )
    learner = _learner(tiny_model, ppo_config(reward={"normalise": True}))
    metrics = learner.update(process).metrics
    assert (metrics["score/mean"], metrics["score/std"]) == (2.0, 1.0)
    moments = learner.snapshot().numbers["state"]["score_moments"]
    assert (moments["count"], moments["mean"], moments["sum_squares"]) == (8, 2.0, 8.0)


def test_the_rest_of_a_batch_is_left_out_above_the_target_kl(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder
) -> None:
    fields = {"num_epochs": 4, "minibatch_size": 8, "learning_rate": 1e-2}
    free = _learner(tiny_model, ppo_config(**fields)).update(scored_batch())
    assert (free.policy_version, free.metrics["policy/minibatches_left_out"]) == (4, 0)
    # The first minibatch starts at the old policy, the second is past the target.
    stopped = _learner(tiny_model, ppo_config(**fields, policy_loss={"target_kl": 1e-6})).update(scored_batch())
    assert (stopped.policy_version, stopped.metrics["policy/minibatches_left_out"]) == (2, 2)


def test_the_first_step_of_a_batch_has_a_ratio_of_exactly_one(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rounded_elsewhere(*arguments: Any, **settings: Any) -> PreparedBatch:
        """As if the frozen pass had packed other rows together, only more so."""
        prepared = prepare(*arguments, **settings)
        return replace(prepared, old_logprobs_BT=prepared.old_logprobs_BT + 0.01)

    monkeypatch.setattr("learners.policy.learner.prepare", rounded_elsewhere)
    metrics = {}
    for num_epochs in (1, 2):
        config = ppo_config(minibatch_size=8, num_epochs=num_epochs, policy_loss={"clip_eps": 0.005})
        metrics[num_epochs] = _learner(tiny_model, config).update(scored_batch()).metrics
    assert (metrics[1]["policy/approx_kl"], metrics[1]["policy/clip_frac"]) == (0, 0)
    assert metrics[2]["policy/clip_frac"] > 0.2  # of the second step alone


def test_a_smaller_batch_leaves_the_end_of_the_decay_where_it_was(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder
) -> None:
    fields = {"optimizer": {"learning_rate": 1e-4, "decay": "linear"}, "prompts_per_step": 8, "minibatch_size": 4, "num_steps": 2}
    learner = _learner(tiny_model, ppo_config(**fields))
    rates = [learner.update(scored_batch(size, step=step)).metrics["optim/learning_rate"] for step, size in enumerate((8, 4))]
    # Four optimizer steps are planned: 1 - 0.9 / 3 at the second, the last of the first batch; 1 - 0.9 * 2 / 3 at the third.
    assert rates == pytest.approx([0.7e-4, 0.4e-4])


def test_a_kl_that_is_not_finite_leaves_the_adaptive_coefficient_alone() -> None:
    config = KLConfig(control="adaptive", coef=0.1)
    for kl in (float("nan"), float("inf"), -float("inf")):
        assert LearnerState(kl_coef=0.1).with_kl(kl, num_completions=8, config=config).kl_coef == 0.1


def test_a_bootstrapped_score_of_the_whole_text_is_refused(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder
) -> None:
    learner = _learner(tiny_model, ppo_config(reward={"truncation": "bootstrap"}))
    with pytest.raises(ConfigError, match="counts that score again"):
        learner.update(scored_batch())


def test_the_reference_follows_every_n_steps_and_evaluations_still_measure_from_the_start(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder
) -> None:
    config = ppo_config(kl={"refresh_reference_steps": 2}, num_frozen_layers=1)
    learner = _learner(tiny_model, config)
    batch = scored_batch()
    before = learner.completion_logprobs(_groups(batch))
    metrics = [learner.update(scored_batch(step=step)).metrics for step in range(4)]
    at_reference = [step["policy/ref_kl_nats_per_completion"] == 0 for step in metrics]
    assert at_reference == [True, False, True, False]  # the KL that trains is to the copy of two steps ago at most
    after = learner.completion_logprobs(_groups(batch))
    moved = [sum(late) - sum(early) for early, late in zip(before, after, strict=True)]
    assert any(distance != 0 for distance in moved)
    assert learner.start_kl(batch.groups) == pytest.approx(moved, abs=1e-5)
    resumed = _learner(tiny_model, config)
    resumed.restore(learner.snapshot())
    assert resumed.start_kl(batch.groups) == learner.start_kl(batch.groups)


def test_the_kl_coefficient_follows_the_kl_of_the_batch_before(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder
) -> None:
    config = ppo_config(kl={"control": "adaptive", "coef": 0.1, "target_kl_nats_per_completion": 6.0, "horizon": 80})
    learner = _learner(tiny_model, config)
    coefficients = [learner.update(scored_batch(step=step)).metrics["policy/kl_coef"] for step in range(2)]
    # The first batch has a KL of 0, a fifth or more below the target: -0.2 * 8 / 80.
    assert coefficients == pytest.approx([0.1, 0.1 * (1 - 0.02)])


def test_a_score_that_is_not_finite_leaves_the_running_moments_alone(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder
) -> None:
    config = ppo_config(reward={"normalise": True}, minibatch_size=8)
    learner, untouched = _learner(tiny_model, config), _learner(tiny_model, config)
    assert learner.update(scored_batch(scores=[1e39] + [0.0] * 7)).metrics["optim/skipped_steps"] == 1
    after, expected = learner.update(scored_batch()).metrics, untouched.update(scored_batch()).metrics
    assert after["policy/loss"] == pytest.approx(expected["policy/loss"])


@pytest.mark.numeric
@pytest.mark.parametrize("algorithm", ["grpo", "dr_grpo", "rloo", "dapo", "gspo", "cispo"])
def test_groups_of_equal_scores_change_no_weight(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder, tmp_path: Path, algorithm: str
) -> None:
    config = ppo_config(algorithm=algorithm, minibatch_size=8, kl={"coef": 0.0}, reward={"overlong_penalty": 0.0})
    learner = _learner(tiny_model, config)
    before = _weights(learner, tmp_path / "before")
    metrics = learner.update(scored_batch(scores=[0.1] * 4 + [0.7] * 4, group_size=4)).metrics
    after = _weights(learner, tmp_path / "after")
    assert metrics["policy/advantage_zero_frac"] == 1
    assert metrics["optim/grad_norm"] == 0
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("algorithm", [name for name in PRESETS if name != "gspo"])
def test_every_preset_makes_rewarded_completions_likelier(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder, algorithm: str
) -> None:
    learner = _learner(tiny_model, ppo_config(algorithm=algorithm, minibatch_size=8, learning_rate=1e-3, num_steps=9))
    batch = scored_batch(scores=[4.0, -4.0] * 4, group_size=2)
    before = [sum(logprobs) for logprobs in learner.completion_logprobs(_groups(batch))]
    for _ in range(4):
        learner.update(batch)
    after = [sum(logprobs) for logprobs in learner.completion_logprobs(_groups(batch))]
    gains = [b - a for a, b in zip(before, after, strict=True)]
    assert sum(gains[0::2]) > 0 > sum(gains[1::2])


def test_a_model_that_scales_its_logits_is_refused(tiny_model: str, ppo_config: ConfigBuilder, tmp_path: Path) -> None:
    from transformers import CohereConfig, CohereForCausalLM

    model = CohereForCausalLM(
        CohereConfig(
            vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, logit_scale=0.5
        )
    )
    model.save_pretrained(tmp_path / "scaled")
    with pytest.raises(DataError, match="plain linear head"):
        _learner(str(tmp_path / "scaled"), ppo_config())
    shutil.rmtree(tmp_path / "scaled")
