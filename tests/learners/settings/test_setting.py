"""What decided a value: the file, an override, a preset, or a default."""

from pathlib import Path

import pytest

from cluster.errors import ConfigError
from learners.settings.presets import preset_values
from learners.settings.setting import setting_in

CONFIGS = Path(__file__).parents[3] / "configs"
GRPO = CONFIGS / "train" / "grpo_arithmetic.yaml"


@pytest.mark.parametrize(
    ("key", "overrides", "value", "set_by"),
    [
        ("learner.algorithm", [], "grpo", "file"),
        ("learner.kl.coef", [], 0.04, "preset"),
        ("learner.kl.coef", ["learner.kl.coef=0.5"], 0.5, "file"),
        ("learner.num_epochs", [], 1, "default"),
        ("task.kind", [], "arithmetic", "file"),
        ("seed", [], 0, "default"),
    ],
)
def test_what_decided_a_value_is_named(key: str, overrides: list[str], value: object, set_by: str) -> None:
    setting = setting_in(GRPO, overrides, key)
    assert (setting.value, setting.set_by, setting.file) == (value, set_by, str(GRPO))


def test_the_learner_of_a_quickstart_has_presets_too() -> None:
    setting = setting_in(
        CONFIGS / "quickstart_small.yaml", ["policy.learner.algorithm=decoupled_ppo"], "policy.learner.mismatch.cap"
    )
    assert (setting.value, setting.set_by) == (5.0, "preset")


def test_a_key_that_the_file_cannot_have() -> None:
    with pytest.raises(ConfigError, match=r"task.path: .*grpo_arithmetic.yaml has no such key"):
        setting_in(GRPO, [], "task.path")


def test_presets_name_the_algorithms_that_change_a_default() -> None:
    assert preset_values("policy_loss.clip_eps_high") == {"dapo": 0.28, "gspo": 4e-4, "cispo": 4.0}
    assert preset_values("policy_loss") == {}
    assert preset_values("num_steps") == {}
    assert preset_values("") == {}
