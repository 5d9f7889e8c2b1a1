"""Episodes that were played come back from their file as they were; what is none is told."""

from pathlib import Path

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from safetensors.numpy import save_file

from cluster.errors import ConfigError, DataError
from learners.environments.recorded import RecordedEpisode, check_spaces, read_episodes, write_episodes
from learners.environments.rollouts import evaluate_by_episodes
from learners.settings.environments.task import EpisodeEvaluationConfig
from tests.learners.environments.failing import Mistaken
from tests.learners.environments.test_rollouts import Always


def episode(num_steps: int, *, first: int = 0, is_terminal: bool = True) -> RecordedEpisode:
    return RecordedEpisode(
        observations=np.arange(first, first + num_steps + 1, dtype=np.float32).reshape(-1, 1),
        actions=np.arange(num_steps) % 2,
        rewards=np.full(num_steps, 0.5),
        is_terminal=is_terminal,
    )


def test_episodes_come_back_as_they_were(tmp_path: Path) -> None:
    episodes = [episode(3), episode(1, first=10, is_terminal=False), episode(2, first=20)]
    write_episodes(tmp_path / "new" / "a.safetensors", episodes)
    for found, written in zip(read_episodes(tmp_path / "new" / "a.safetensors"), episodes, strict=True):
        for name in ("observations", "actions", "rewards"):
            np.testing.assert_array_equal(getattr(found, name), getattr(written, name), strict=True)
        assert found.is_terminal == written.is_terminal


def test_an_evaluation_hands_on_its_episodes() -> None:
    found: list[RecordedEpisode] = []
    config = EpisodeEvaluationConfig(num_episodes=2)
    without = evaluate_by_episodes(lambda _: Mistaken(), Always(1), config, seed=0)
    assert evaluate_by_episodes(lambda _: Mistaken(), Always(1), config, seed=0, record=found.append) == without
    assert [(each.observations.shape, each.actions.tolist(), each.rewards.sum(), each.is_terminal) for each in found] == [
        ((6, 1), [1] * 5, 5.0, True)
    ] * 2


def test_an_episode_that_is_cut_has_no_end() -> None:
    found: list[RecordedEpisode] = []
    config = EpisodeEvaluationConfig(num_episodes=1, max_episode_steps=3)
    evaluate_by_episodes(lambda _: Mistaken(num_states=4), Always(1), config, seed=0, record=found.append)
    assert (len(found[0].rewards), found[0].is_terminal, found[0].observations.shape) == (3, False, (4,))


def test_what_holds_no_episodes_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not there; train a run with evaluation\.record_episodes=true"):
        read_episodes(tmp_path / "none.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"torn\.safetensors: not a file of episodes"):
        read_episodes(tmp_path / "torn.safetensors")
    save_file({"weight": np.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match=r"other\.safetensors: not a file of episodes: it holds weight"):
        read_episodes(tmp_path / "other.safetensors")


def test_episodes_of_another_environment_are_refused() -> None:
    path = Path("there")
    check_spaces([episode(3)], Box(-1, 1, (1,)), Discrete(2), path)
    with pytest.raises(ConfigError, match=r"there holds the observation \[0\.\], which is not of the environment's Box\(4"):
        check_spaces([episode(3)], Box(4, 5, (1,)), Discrete(2), path)
    with pytest.raises(ConfigError, match="holds the action 0, which is not of the environment's Box"):
        check_spaces([episode(3)], Box(-1, 1, (1,)), Box(-1, 1, (1,)), path)


def test_a_record_without_its_last_observation_is_refused() -> None:
    with pytest.raises(DataError, match="3 rewards has 3 actions and 3 observations"):
        RecordedEpisode(observations=np.zeros((3, 1)), actions=np.zeros(3), rewards=np.zeros(3), is_terminal=True)
