"""Settings of environments, and of evaluations in them."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from cluster.config import StrictConfig


class WrapperConfig(StrictConfig):
    """What stands between a learner and its environment."""

    name: str = Field(min_length=1)
    """Of `gymnasium.wrappers`, for example TimeAwareObservation; or `module:Class`, one of yours."""
    options: dict[str, Any] = Field(default_factory=dict)
    """What it is given besides the environment, as it names them."""


class GymnasiumTaskConfig(StrictConfig):
    """An environment that Gymnasium knows by its id, or one of yours."""

    kind: Literal["gymnasium"] = "gymnasium"
    env: str = Field(min_length=1)
    """Its id, for example FrozenLake-v1. `module:Id-v0` imports the module first, which registers the id; `module:Class` needs no
    id, and the class may be a function that makes the environment."""
    options: dict[str, Any] = Field(default_factory=dict)
    """What `gymnasium.make` is given besides, as the environment names it."""
    max_episode_steps: int | None = Field(None, ge=1)
    """An episode is cut after so many steps; None is the limit that is registered with the id, which may be none."""
    wrappers: tuple[WrapperConfig, ...] = ()
    """Around it, the innermost first. What they change has no model: such a run is evaluated by episodes."""

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


class RLlibEvaluationConfig(EpisodeEvaluationConfig):
    """An evaluation by episodes, on the way too, that can choose a policy and keep its episodes."""

    record_episodes: bool = False
    """Keep the evaluated episodes in `evaluation/environment/before_episodes.safetensors` and `after_episodes.safetensors`, for
    rllib_bc and rllib_marwil to learn from."""
    every_num_env_steps: int = Field(0, ge=0)
    """Also after the iteration in which so many more are reached, as points of the learning curve; 0 is never."""
    num_interim_episodes: int = Field(20, ge=1)
    """Of each evaluation on the way: other episodes than those before and after."""
    keep: Literal["last", "best"] = "last"
    """The policy that a run ends with. best: the one with the highest return on the way; of equal ones, the latest."""

    @model_validator(mode="after")
    def _the_best_is_looked_for(self) -> Self:
        if self.keep == "best" and self.every_num_env_steps == 0:
            raise ValueError("keep=best needs evaluations on the way; set every_num_env_steps")
        return self
