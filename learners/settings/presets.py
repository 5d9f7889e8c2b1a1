"""The published methods as values over the parts of `settings.policy`. A preset decides nothing that a file cannot say."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

Algorithm = Literal[
    "ppo",
    "decoupled_ppo",
    "grpo",
    "dr_grpo",
    "dapo",
    "gspo",
    "cispo",
    "rloo",
    "reinforce",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "remax",
]

WITHOUT_CRITIC = {"critic": {"kind": "none"}}
WITHOUT_KL = {"kl": {"coef": 0.0}}

PRESETS: Mapping[Algorithm, Mapping[str, Any]] = {
    # arXiv:1707.06347 with the rewards of arXiv:1909.08593: the defaults.
    "ppo": {},
    # arXiv:2110.00641, arXiv:2505.24298: PPO whose ratio starts at the learner's weights, weighted back to those that sampled.
    "decoupled_ppo": {"mismatch": {"old_logprobs": "learner", "correction": "token", "cap": 5.0}},
    # arXiv:2402.03300.
    "grpo": {
        **WITHOUT_CRITIC,
        "advantage": {"estimator": "grpo", "whiten": False},
        "policy_loss": {"aggregation": "sequence_mean"},
        "kl": {"coef": 0.04, "place": "loss", "estimator": "k3"},
    },
    # arXiv:2503.20783.
    "dr_grpo": {
        **WITHOUT_CRITIC,
        **WITHOUT_KL,
        "advantage": {"estimator": "dr_grpo", "whiten": False},
        "policy_loss": {"aggregation": "constant_length"},
    },
    # arXiv:2503.14476.
    "dapo": {
        **WITHOUT_CRITIC,
        **WITHOUT_KL,
        "reward": {"overlong_penalty": 1.0, "overlong_buffer_frac": 0.2},
        "advantage": {"estimator": "grpo", "whiten": False},
        "policy_loss": {"clip_eps": 0.2, "clip_eps_high": 0.28, "aggregation": "token_mean"},
        "group_filter": {"enabled": True},
    },
    # arXiv:2507.18071, section 5.1.
    "gspo": {
        **WITHOUT_CRITIC,
        **WITHOUT_KL,
        "advantage": {"estimator": "grpo", "whiten": False},
        "policy_loss": {"kind": "gspo", "clip_eps": 3e-4, "clip_eps_high": 4e-4, "aggregation": "sequence_mean"},
    },
    # arXiv:2506.13585: no lower bound; the upper one is from arXiv:2510.13786, which tried 4, 5 and 8.
    "cispo": {
        **WITHOUT_CRITIC,
        **WITHOUT_KL,
        "advantage": {"estimator": "grpo", "whiten": False},
        "policy_loss": {"kind": "cispo", "clip_eps": 1.0, "clip_eps_high": 4.0, "aggregation": "token_mean"},
    },
    # arXiv:2402.14740: a completion is one action, so its tokens' log-probabilities add up.
    "rloo": {
        **WITHOUT_CRITIC,
        "advantage": {"estimator": "rloo", "whiten": False},
        "policy_loss": {"kind": "policy_gradient", "aggregation": "constant_length"},
    },
    # Williams 1992.
    "reinforce": {
        **WITHOUT_CRITIC,
        "advantage": {"estimator": "reinforce", "whiten": False},
        "policy_loss": {"kind": "policy_gradient", "aggregation": "constant_length"},
    },
    # arXiv:2501.03262.
    "reinforce_plus_plus": {**WITHOUT_CRITIC, "advantage": {"estimator": "reinforce", "whiten": True}},
    "reinforce_plus_plus_baseline": {
        **WITHOUT_CRITIC,
        "advantage": {"estimator": "dr_grpo", "whiten": True},
        "kl": {"place": "loss", "estimator": "k2"},
    },
    # arXiv:2310.10505.
    "remax": {
        **WITHOUT_CRITIC,
        "advantage": {"estimator": "remax", "whiten": False},
        "policy_loss": {"kind": "policy_gradient", "aggregation": "constant_length"},
    },
}


def with_preset(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` of a learner, over those of the preset that their `algorithm` names."""
    algorithm = values.get("algorithm", "ppo")
    preset = PRESETS[algorithm] if algorithm in get_args(Algorithm) else {}
    return _merged(preset, values)


def preset_values(key: str) -> dict[str, Any]:
    """Of a learner's key such as `kl.coef`: algorithm -> the value that its preset puts in the place of the default."""
    found: dict[str, Any] = {}
    for algorithm, preset in PRESETS.items():
        value: Any = preset
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None and not isinstance(value, Mapping):
            found[algorithm] = value
    return found


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**below, **above}
    for key, value in below.items():
        if isinstance(value, Mapping) and isinstance(above.get(key), Mapping):
            merged[key] = _merged(value, above[key])
    return merged
