"""A Gymnasium environment from its id."""

from typing import Any

import gymnasium

from cluster.errors import ConfigError
from learners.environments.told_errors import ToldErrors
from learners.settings.environments.task import GymnasiumTaskConfig


def make_environment(task: GymnasiumTaskConfig, *, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """The environment as Gymnasium makes it, and `EnvironmentFailedError` where it raises later. Raises `ConfigError`."""
    shown = {} if render_mode is None else {"render_mode": render_mode}  # an environment need not know the word
    try:
        made = gymnasium.make(
            task.env,
            max_episode_steps=task.max_episode_steps,
            disable_env_checker=True,  # its checks cost more than a step of a toy environment
            **shown,
            **task.options,
        )
    except Exception as error:  # whatever an environment raises on its own options
        given = f" with task.options={task.options}" if task.options else ""
        said = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(f"task.env={task.env}{given} cannot be made: {type(error).__name__}: {said}") from error
    return ToldErrors(made, task.env)
