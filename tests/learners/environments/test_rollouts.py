"""A policy's worth by episodes: undiscounted, each with draws of its own, the same before and after."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import pytest

from learners.environments import rollouts
from learners.environments.rollouts import evaluate_by_episodes
from learners.settings.environments.task import EpisodeEvaluationConfig
from tests.learners.environments.failing import Mistaken


class Always:
    """The same action, whatever is seen."""

    def __init__(self, action: int) -> None:
        self.action = action
        self.asked: list[int] = []  # number of observations of each call

    def begin(self, num_episodes: int) -> None:
        pass

    def act(self, observations: Sequence[Any], episodes: Sequence[int]) -> list[int]:
        self.asked.append(len(observations))
        return [self.action] * len(observations)


class Leaning:
    """Pushes the cart of CartPole to where its pole leans, and every third time to the other side."""

    def begin(self, num_episodes: int) -> None:
        self._num_steps = [0] * num_episodes

    def act(self, observations: Sequence[Any], episodes: Sequence[int]) -> list[int]:
        return [self._act(observation, episode) for observation, episode in zip(observations, episodes, strict=True)]

    def _act(self, observation: Any, episode: int) -> int:
        self._num_steps[episode] += 1
        return int((observation[2] > 0) != (self._num_steps[episode] % 3 == 0))


def cart_pole(render_mode: str | None) -> gymnasium.Env[Any, Any]:
    return gymnasium.make("CartPole-v1", render_mode=render_mode)


def test_returns_are_sums_of_rewards() -> None:
    policy = Always(1)
    found = evaluate_by_episodes(lambda _: Mistaken(), policy, EpisodeEvaluationConfig(num_episodes=3), seed=0)
    assert (found.return_mean, found.return_std, found.num_episodes) == (5.0, 0.0, 3)  # five steps of reward 1
    assert not found.is_discounted
    assert policy.asked == [3] * 5 + [1] * 5  # side by side, then the episode that is shown
    assert found.episode is not None
    assert (found.episode.total, found.episode.num_steps, found.episode.is_cut, found.episode.frames) == (5.0, 5, False, ())


def test_an_episode_is_cut_at_the_limit() -> None:
    found = evaluate_by_episodes(
        lambda _: Mistaken(), Always(1), EpisodeEvaluationConfig(num_episodes=2, max_episode_steps=3), seed=0
    )
    assert found.return_mean == 3.0


def test_side_by_side_is_the_same_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    config = EpisodeEvaluationConfig(num_episodes=7)
    together = evaluate_by_episodes(cart_pole, Leaning(), config, seed=1)
    assert together.return_std is not None
    assert together.return_std > 0
    monkeypatch.setattr(rollouts, "MAX_SIDE_BY_SIDE", 1)
    assert evaluate_by_episodes(cart_pole, Leaning(), config, seed=1) == together
    assert evaluate_by_episodes(cart_pole, Leaning(), config, seed=2) != together


def test_text_is_shown_where_the_environment_has_some() -> None:
    def lake(render_mode: str | None) -> gymnasium.Env[Any, Any]:
        return gymnasium.make("FrozenLake-v1", render_mode=render_mode, is_slippery=False)

    found = evaluate_by_episodes(lake, Always(1), EpisodeEvaluationConfig(num_episodes=1), seed=0)
    assert found.episode is not None
    assert len(found.episode.frames) == found.episode.num_steps + 1
    assert "Down" in found.episode.frames[1]
