"""Presets are values, values win over presets, and mixes that make no sense are refused with the reason."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from cluster.errors import ConfigError
from learners.settings.policy import PolicyLearnerConfig
from learners.settings.presets import PRESETS, Algorithm
from learners.settings.run import PolicyRunConfig, load_run_config

HALF = ["learner.minibatch_size=8"]  # the batch, where there is one sample a prompt
TINY = Path(__file__).resolve().parents[3] / "configs" / "train" / "tiny.yaml"
BASE = {"num_steps": 1, "prompts_per_step": 4, "minibatch_size": 8}


def _config(**fields: Any) -> PolicyLearnerConfig:
    return PolicyLearnerConfig.model_validate({**BASE, **fields})


@pytest.mark.parametrize("algorithm", PRESETS)
def test_a_preset_decides_nothing_that_its_values_do_not_say(algorithm: Algorithm) -> None:
    by_name, by_value = _config(algorithm=algorithm), _config(**PRESETS[algorithm])
    assert by_name.model_copy(update={"algorithm": "ppo"}) == by_value


def test_presets_differ() -> None:
    written_out = [_config(algorithm=algorithm).model_dump_json(exclude={"algorithm"}) for algorithm in PRESETS]
    assert len(set(written_out)) == len(PRESETS)


def test_a_value_wins_over_the_preset_and_leaves_its_neighbours() -> None:
    config = _config(algorithm="grpo", kl={"coef": 0.0})
    assert (config.kl.coef, config.kl.place, config.kl.estimator) == (0.0, "loss", "k3")


def test_a_resolved_configuration_reads_back_as_itself() -> None:
    config = _config(algorithm="dapo", policy_loss={"clip_eps_high": 0.4})
    assert PolicyLearnerConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"critic": {"kind": "none"}}, "advantage.estimator=gae needs a critic"),
        ({"advantage": {"estimator": "rloo"}}, "critic.kind=value_head would learn for nothing"),
        ({"algorithm": "grpo", "advantage": {"gamma": 0.9}}, "advantage.gamma=0.9 has no meaning"),
        ({"algorithm": "grpo", "reward": {"truncation": "bootstrap"}}, "reward.truncation=bootstrap needs a critic"),
        ({"algorithm": "grpo", "reward": {"whiten": True}}, "reward.whiten has no meaning for advantage.estimator=grpo"),
        ({"algorithm": "grpo", "critic": {"warmup_steps": 2}}, "critic.warmup_steps=2 has no meaning without a critic"),
        ({"critic": {"model": "tiny"}}, "set critic.kind=own_model"),
        (
            {"policy_loss": {"kind": "gspo", "aggregation": "sequence_mean"}},
            "policy_loss.kind=gspo clips the ratio of whole completions, but advantage.estimator=gae",
        ),
        ({"algorithm": "gspo", "policy_loss": {"aggregation": "token_mean"}}, "policy_loss.kind=gspo is a mean over completions"),
        ({"algorithm": "cispo", "policy_loss": {"dual_clip": 3.0}}, "policy_loss.dual_clip=3.0 has no meaning"),
        ({"algorithm": "rloo", "num_epochs": 2}, "num_epochs=2 would be biased"),
        ({"kl": {"place": "loss"}}, "kl.estimator=k1 as a loss has a gradient of zero on average"),
        ({"kl": {"estimator": "k3"}}, "kl.estimator=k3 in the reward does not give the gradient of the KL"),
        ({"kl": {"control": "adaptive", "coef": 0.0}}, "kl.control=adaptive cannot move kl.coef=0"),
        ({"mismatch": {"old_logprobs": "rollout"}}, "a correction would count them twice"),
        ({"mismatch": {"band": [1.2, 2.0]}}, "mismatch.band=1.2, 2 must hold 1"),
        ({"workers": {"compute_dtype": "float16"}}, "float16 turns gradients below 6e-8 into zeros"),
        ({"algorithm": "ppoo"}, "'ppo', 'decoupled_ppo'"),
        ({"lora": {"rank": 12}}, "Input should be 1, 8, 16, 32, 64, 128, 256, 320 or 512"),
        ({"lora": {"target_modules": []}}, "at least 1 item"),
        (
            {"lora": {}, "kl": {"refresh_reference_steps": 2}},
            "kl.refresh_reference_steps=2 moves the reference, but that of `lora` is the policy with its adapter switched off",
        ),
    ],
)
def test_mixes_without_sense_are_refused_with_the_reason(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError) as caught:
        _config(**fields)
    assert reason in str(caught.value)


def test_every_reason_is_told_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        _config(critic={"kind": "none"}, kl={"place": "loss"}, mismatch={"old_logprobs": "rollout"})
    for reason in ("needs a critic", "k1 as a loss", "count them twice"):
        assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("algorithm", "overrides", "reason"),
    [
        (
            "grpo",
            ["sampling.samples_per_prompt=1", "learner.minibatch_size=8"],
            "learner.advantage.estimator=grpo compares the completions of one prompt",
        ),
        (
            "dapo",
            ["sampling.samples_per_prompt=1", "learner.minibatch_size=8"],
            "learner.group_filter looks for prompts whose completions differ",
        ),
        ("rloo", ["learner.minibatch_size=8"], "set it to 16, or use ppo_clip"),
        ("ppo", ["learner.reward.truncation=bootstrap"], "the scorers length judge a completion as a whole"),
    ],
)
def test_a_run_must_have_what_its_method_compares(algorithm: str, overrides: list[str], reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run_config(TINY, [f"learner.algorithm={algorithm}", *overrides])
    assert reason in str(caught.value)


@pytest.mark.parametrize("algorithm", PRESETS)
def test_one_file_serves_every_method(algorithm: str) -> None:
    config = load_run_config(TINY, [f"learner.algorithm={algorithm}"])
    assert isinstance(config, PolicyRunConfig)
    assert config.learner.algorithm == algorithm
    assert yaml.safe_load(TINY.read_text())["learner"].keys() <= {
        "algorithm",
        "num_steps",
        "prompts_per_step",
        "minibatch_size",
        "optimizer",
        "workers",
    }


def test_nothing_follows_a_cut_completion_unless_asked_for() -> None:
    assert {_config(algorithm=algorithm).reward.truncation for algorithm in PRESETS} == {"terminal"}


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["learner.algorithm=remax"], "greedy completion of the same weights"),
        (["learner.algorithm=grpo", "learner.group_filter.enabled=true"], "asynchronous rollouts never do"),
        (["learner.mismatch.correction=none"], "tokens of older weights for the learner's own"),
    ],
)
def test_a_method_that_asynchronous_rollouts_would_mislead_is_refused(overrides: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load_run_config(TINY, ["asynchronous.max_staleness=1", *overrides])


@pytest.mark.parametrize(
    "other",
    [
        ["learner.algorithm=decoupled_ppo", "asynchronous.max_staleness=1"],
        ["learner.algorithm=grpo", "learner.group_filter.enabled=true"],
        ["learner.algorithm=remax"],
    ],
)
def test_extra_prompts_are_refused_where_a_step_asks_in_its_own_way(other: list[str]) -> None:
    assert load_run_config(TINY, other)
    with pytest.raises(ConfigError, match="extra_prompts_per_step=2 does not go with"):
        load_run_config(TINY, ["extra_prompts_per_step=2", *other])


def test_asynchronous_rollouts_are_off_and_keep_what_runs_by_default() -> None:
    config, on = load_run_config(TINY), load_run_config(TINY, ["asynchronous.max_staleness=2", "learner.algorithm=decoupled_ppo"])
    assert isinstance(config, PolicyRunConfig)
    assert isinstance(on, PolicyRunConfig)
    assert config.asynchronous is None
    assert on.asynchronous is not None
    assert (on.asynchronous.max_staleness, on.asynchronous.running_requests) == (2, "keep")
    assert load_run_config(TINY, ["asynchronous.max_staleness=0", "learner.mismatch.correction=none"])  # nothing is older


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (
            ["learner.lora={}", "generator.weight_transfer=nccl", "generator.num_gpus=1", "learner.workers.num_gpus=1"],
            "generator.weight_transfer=nccl sends all weights of a policy over devices, but learner.lora publishes an adapter",
        ),
        (["export.weights=adapter"], "export.weights=adapter needs an adapter, but learner.lora is not set"),
        (
            ["learner.lora={}", "export.weights=adapter", "export.every_num_steps=1"],
            "export.every_num_steps=1 is for endpoints that follow a run, whose engines take whole weights only",
        ),
    ],
)
def test_adapters_are_refused_where_they_cannot_go(overrides: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)):
        load_run_config(TINY, overrides)


@pytest.mark.parametrize(("overrides", "num_adapters"), [([], 2), (["asynchronous={max_staleness: 3}"], 5)])
def test_engines_keep_room_for_the_adapters_of_older_completions(overrides: list[str], num_adapters: int) -> None:
    config = load_run_config(TINY, ["learner.algorithm=decoupled_ppo", "learner.lora={}", *overrides])
    assert isinstance(config, PolicyRunConfig)
    assert config.num_adapters == num_adapters
