"""The worth of a policy over any observations, by episodes that are played side by side."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import gymnasium
import numpy as np

from cluster.seeding import derive_seed
from learners.environments.drawn import Frames, shown_mode
from learners.evaluation.returns import EnvironmentEvaluation, ShownEpisode
from learners.settings.environments.task import EpisodeEvaluationConfig

MAX_SIDE_BY_SIDE = 50  # environments at one time
MAX_SHOWN_STEPS = 200  # of the episode that is shown


class Policy(Protocol):
    """Produced by learners whose states are no table."""

    def begin(self, num_episodes: int) -> None:
        """So many episodes begin side by side. What is remembered of earlier ones is forgotten."""

    def act(self, observations: Sequence[Any], episodes: Sequence[int]) -> Sequence[Any]:
        """One action for each observation. `episodes`: the one that each belongs to, counting from 0."""


def evaluate_by_episodes(
    make: Callable[[str | None], gymnasium.Env[Any, Any]], policy: Policy, config: EpisodeEvaluationConfig, *, seed: int
) -> EnvironmentEvaluation:
    """`make` gives an environment of a render mode. The draws of episode i are those of `seed` and i, before as after."""
    returns: list[float] = []
    for first in range(0, config.num_episodes, MAX_SIDE_BY_SIDE):
        numbers = range(first, min(first + MAX_SIDE_BY_SIDE, config.num_episodes))
        returns += _returns([make(None) for _ in numbers], policy, [_seed(seed, number) for number in numbers], config)
    return EnvironmentEvaluation(
        is_discounted=False,
        return_mean=float(np.mean(returns)),
        return_std=float(np.std(returns)),
        optimal_return=None,
        num_episodes=config.num_episodes,
        episode=_shown(make, policy, seed),
        grid=None,
    )


def _seed(seed: int, episode: int) -> int:
    return derive_seed(seed, "evaluation environment", episode)


def _returns(
    envs: list[gymnasium.Env[Any, Any]], policy: Policy, seeds: list[int], config: EpisodeEvaluationConfig
) -> list[float]:
    """Undiscounted, of one episode of each environment."""
    observations = [env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)]
    totals = [0.0] * len(envs)
    playing = list(range(len(envs)))
    policy.begin(len(envs))
    for _ in range(config.max_episode_steps):
        actions = policy.act([observations[index] for index in playing], playing)
        still = []
        for index, action in zip(playing, actions, strict=True):
            observations[index], reward, is_terminal, is_cut, _ = envs[index].step(action)
            totals[index] += float(reward)
            if not (is_terminal or is_cut):
                still.append(index)
        playing = still
        if not playing:
            break
    for env in envs:
        env.close()
    return totals


def _shown(make: Callable[[str | None], gymnasium.Env[Any, Any]], policy: Policy, seed: int) -> ShownEpisode:
    """The same start before and after."""
    mode = shown_mode(make(None))
    env = make(mode)
    frames = Frames(env)
    observation, _ = env.reset(seed=derive_seed(seed, "shown environment"))
    frames.add()
    policy.begin(1)
    total, num_steps, is_terminal, is_cut = 0.0, 0, False, False
    while not (is_terminal or is_cut or num_steps >= MAX_SHOWN_STEPS):
        [action] = policy.act([observation], [0])
        observation, reward, is_terminal, is_cut, _ = env.step(action)
        total, num_steps = total + float(reward), num_steps + 1
        frames.add()
    env.close()
    return ShownEpisode(frames=frames.shown(), num_steps=num_steps, total=total, is_cut=not is_terminal, film=frames.film())
