"""Episodes that were played, as a file that others learn from: arrays of all steps, one after the other.

Shapes: E episodes, N steps over all of them. An episode has one observation more than it has steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Space
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from cluster.errors import ConfigError, DataError
from cluster.storage.atomic_file import write_atomically

NAMES = {"observations", "actions", "rewards", "num_steps", "is_terminal"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedEpisode:
    """Produced by evaluations in environments, consumed by `learners.rllib.recorded`."""

    observations: np.ndarray  # [steps + 1, ...]
    actions: np.ndarray  # [steps, ...], as the environment takes them
    rewards: np.ndarray  # [steps]
    is_terminal: bool  # else it was cut, and the last observation has a value

    def __post_init__(self) -> None:
        if not len(self.actions) == len(self.rewards) == len(self.observations) - 1 > 0:
            raise DataError(
                f"an episode of {len(self.rewards)} rewards has {len(self.actions)} actions and {len(self.observations)} "
                "observations; record one action a reward, and one observation more"
            )


def write_episodes(path: Path, episodes: Sequence[RecordedEpisode]) -> None:
    """As safetensors. Observations and actions must be numbers, or arrays of one shape."""
    arrays = {
        "observations": np.concatenate([episode.observations for episode in episodes]),
        "actions": np.concatenate([episode.actions for episode in episodes]),
        "rewards": np.concatenate([episode.rewards for episode in episodes]),
        "num_steps": np.array([len(episode.rewards) for episode in episodes]),
        "is_terminal": np.array([episode.is_terminal for episode in episodes]),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save(arrays))


def read_episodes(path: Path) -> list[RecordedEpisode]:
    """Raises `DataError` where the file is broken, `ConfigError` where there is none."""
    if not path.is_file():
        raise ConfigError(
            f"learner.input_: {path} is not there; train a run with evaluation.record_episodes=true, and give its directory"
        )
    try:
        arrays = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: not a file of episodes: {error}") from error
    if set(arrays) != NAMES or arrays["num_steps"].sum() != len(arrays["rewards"]):
        raise DataError(f"{path}: not a file of episodes: it holds {', '.join(sorted(arrays)) or 'nothing'}; record it again")
    ends_E = np.cumsum(arrays["num_steps"])
    return [
        RecordedEpisode(
            observations=arrays["observations"][end - length + number : end + number + 1],
            actions=arrays["actions"][end - length : end],
            rewards=arrays["rewards"][end - length : end],
            is_terminal=bool(is_terminal),
        )
        for number, (end, length, is_terminal) in enumerate(zip(ends_E, arrays["num_steps"], arrays["is_terminal"], strict=True))
    ]


def check_spaces(episodes: Sequence[RecordedEpisode], observations: Space[Any], actions: Space[Any], path: Path) -> None:
    """Raise `ConfigError` where the episodes are not of an environment with these spaces."""
    for name, space, found in (
        ("observation", observations, episodes[0].observations[0]),
        ("action", actions, episodes[0].actions[0]),
    ):
        if not space.contains(np.asarray(found)):
            raise ConfigError(
                f"learner.input_: {path} holds the {name} {found}, which is not of the environment's {space}; give episodes of "
                "the same environment as task.env"
            )
