"""A Gymnasium environment and its wrappers from their names."""

import importlib
from collections.abc import Callable
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec

from cluster.errors import ConfigError
from learners.environments.told_errors import ToldErrors
from learners.settings.environments.task import GymnasiumTaskConfig


def make_environment(task: GymnasiumTaskConfig, *, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """The wrapped environment, which raises `EnvironmentFailedError` where it fails later. Raises `ConfigError`."""
    shown = {} if render_mode is None else {"render_mode": render_mode}  # an environment need not know the word
    try:
        made = gymnasium.make(
            _spec_or_id(task.env),
            max_episode_steps=task.max_episode_steps,
            disable_env_checker=True,  # its checks cost more than a step of a toy environment
            **shown,
            **task.options,
        )
    except Exception as error:  # whatever an environment raises on its own options
        given = f" with task.options={task.options}" if task.options else ""
        said = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(f"task.env={task.env}{given} cannot be made: {type(error).__name__}: {said}") from error
    for wrapper in task.wrappers:
        try:
            made = _wrapper_class(wrapper.name)(made, **wrapper.options)
        except Exception as error:  # as above
            given = f" with options={wrapper.options}" if wrapper.options else ""
            said = " ".join(str(error).split()).rstrip(".")
            raise ConfigError(
                f"task.wrappers: {wrapper.name}{given} does not fit task.env={task.env}: {type(error).__name__}: {said}"
            ) from error
    return ToldErrors(made, task.env)


def _spec_or_id(name: str) -> EnvSpec | str:
    """Gymnasium looks ids up; what a module has under the name of a class or function is made as if it were registered."""
    module, colon, attribute = name.partition(":")
    if not colon or not hasattr(importlib.import_module(module), attribute):
        return name
    return EnvSpec(id=f"{attribute}-v0", entry_point=name)


def _wrapper_class(name: str) -> Callable[..., gymnasium.Env[Any, Any]]:
    module, colon, attribute = name.partition(":")
    if not colon and name not in gymnasium.wrappers.__all__:
        raise ValueError(f"gymnasium.wrappers has no {name}; write module:Class for one of yours")
    found: Callable[..., gymnasium.Env[Any, Any]] = (
        getattr(importlib.import_module(module), attribute) if colon else getattr(gymnasium.wrappers, name)
    )
    return found
