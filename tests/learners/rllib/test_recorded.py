"""Recorded episodes as RLlib's networks see them, drawn by a seed. No Ray."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.rllib.utils.postprocessing.episodes import add_one_ts_to_episodes_and_truncate

from cluster.errors import ConfigError
from learners.environments.making import make_environment
from learners.environments.recorded import write_episodes
from learners.evaluation.returns import AFTER, episodes_file
from learners.rllib.recorded import RecordedEpisodes, load_recorded
from learners.settings.environments.task import GymnasiumTaskConfig
from tests.learners.rllib.small_learners import CART_POLE, play

PENDULUM, LAKE = GymnasiumTaskConfig(env="Pendulum-v1"), GymnasiumTaskConfig(env="FrozenLake-v1")


def leaning(observation: Any) -> int:
    return int(observation[2] > 0)


def recorded(folder: Path, *, num_episodes: int = 5) -> RecordedEpisodes:
    write_episodes(folder / episodes_file(AFTER), play(CART_POLE, num_episodes=num_episodes, choose=leaning))
    return load_recorded([str(folder)], make_environment(CART_POLE), is_flat=False)


def test_episodes_are_drawn_whole_until_there_are_enough_steps(tmp_path: Path) -> None:
    episodes = recorded(tmp_path)
    drawn = episodes.draw(60)
    assert sum(map(len, drawn)) >= 60 > sum(map(len, drawn[:-1]))
    first = drawn[0]
    assert [leaning(observation) for observation in first.get_observations()[:-1]] == list(first.get_actions())
    assert len(first.get_observations()) == len(first) + 1
    assert all(each.is_terminated != each.is_truncated for each in drawn)


def test_each_episode_comes_as_often_as_any_other(tmp_path: Path) -> None:
    episodes = recorded(tmp_path)
    drawn = episodes.draw(2 * episodes.num_steps)
    starts = [tuple(each.get_observations(0)) for each in drawn]
    assert len(set(starts)) == episodes.num_episodes == 5
    assert all(starts.count(start) == 2 for start in starts)


def test_a_seed_draws_the_same_again(tmp_path: Path) -> None:
    def starts(seed: int) -> list[Any]:
        episodes.reseed(seed)
        return [tuple(each.get_observations(0)) for each in episodes.draw(3 * episodes.num_steps)]

    episodes = recorded(tmp_path)
    assert starts(1) == starts(1)
    assert starts(1) != starts(2)


def test_what_rllib_does_to_an_episode_does_not_last(tmp_path: Path) -> None:
    episodes = recorded(tmp_path, num_episodes=1)
    [first] = episodes.draw(1)
    length = len(first)
    add_one_ts_to_episodes_and_truncate([first])
    assert len(first) == length + 1
    [second] = episodes.draw(1)
    assert (len(second), len(second.get_observations())) == (length, length + 1)


def test_actions_are_between_minus_one_and_one_and_numbered_states_are_vectors(tmp_path: Path) -> None:
    write_episodes(tmp_path / "swing", play(PENDULUM, num_episodes=1, choose=lambda _: np.array([1.0], np.float32)))
    [swing] = load_recorded([str(tmp_path / "swing")], make_environment(PENDULUM), is_flat=False).draw(1)
    assert swing.get_actions(0) == pytest.approx([0.5])  # the pendulum's own are between -2 and 2
    write_episodes(tmp_path / "walk", play(LAKE, num_episodes=1, choose=lambda _: 1))
    [walk] = load_recorded([str(tmp_path / "walk")], make_environment(LAKE), is_flat=True).draw(1)
    assert walk.get_observations(0).tolist() == [1.0] + 15 * [0.0]


def test_episodes_of_another_environment_are_refused(tmp_path: Path) -> None:
    write_episodes(tmp_path / "walk", play(LAKE, num_episodes=1, choose=lambda _: 1))
    with pytest.raises(ConfigError, match="walk holds the observation 0, which is not of the environment's Box"):
        load_recorded([str(tmp_path / "walk")], make_environment(CART_POLE), is_flat=False)
    with pytest.raises(ConfigError, match=r"after_episodes\.safetensors is not there"):
        load_recorded([str(tmp_path)], make_environment(CART_POLE), is_flat=False)
