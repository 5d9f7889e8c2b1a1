"""Settings of environments, and of evaluations in them."""

from typing import Any, Literal

from pydantic import Field, field_validator

from cluster.config import StrictConfig


class GymnasiumTaskConfig(StrictConfig):
    """An environment that Gymnasium knows by its id."""

    kind: Literal["gymnasium"] = "gymnasium"
    env: str = Field(min_length=1)
    """Its id, for example FrozenLake-v1. `module:Id-v0` imports the module first, which registers the id."""
    options: dict[str, Any] = Field(default_factory=dict)
    """What `gymnasium.make` is given besides, as the environment names it."""
    max_episode_steps: int | None = Field(None, ge=1)
    """An episode is cut after so many steps; None is the limit that is registered with the id, which may be none."""

    @field_validator("options")
    @classmethod
    def _own_settings_are_not_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        own = sorted({"id", "max_episode_steps", "render_mode", "disable_env_checker"} & set(options))
        if own:
            raise ValueError(
                f"{' and '.join(own)} cannot be set here; use task.env and task.max_episode_steps, and leave out what is shown"
            )
        return options


class EpisodeEvaluationConfig(StrictConfig):
    """What a policy is worth before and after: exactly where the environment tells its model, else by episodes."""

    num_episodes: int = Field(100, ge=1)
    """Of an environment without a model."""
    max_episode_steps: int = Field(1000, ge=1)
    """An evaluated episode is cut after so many steps: a greedy policy may never end one."""


class RecordedEvaluationConfig(EpisodeEvaluationConfig):
    """An evaluation by episodes that can be kept."""

    record_episodes: bool = False
    """Keep the evaluated episodes in `evaluation/environment/before_episodes.safetensors` and `after_episodes.safetensors`, for
    rllib_bc and rllib_marwil to learn from."""
