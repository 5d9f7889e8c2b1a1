"""The worth of a policy over any observations, by episodes that are played side by side."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium
import numpy as np

from cluster.seeding import derive_seed
from learners.environments.drawn import Frames, shown_mode
from learners.environments.recorded import RecordedEpisode
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
    make: Callable[[str | None], gymnasium.Env[Any, Any]],
    policy: Policy,
    config: EpisodeEvaluationConfig,
    *,
    seed: int,
    record: Callable[[RecordedEpisode], None] | None = None,
) -> EnvironmentEvaluation:
    """`make` gives an environment of a render mode. The draws of episode i are those of `seed` and i, before as after.

    `record` is given each episode.
    """
    seeds = [derive_seed(seed, "evaluation environment", number) for number in range(config.num_episodes)]
    returns = returns_of_episodes(make, policy, seeds, max_steps=config.max_episode_steps, record=record)
    return EnvironmentEvaluation(
        is_discounted=False,
        return_mean=float(np.mean(returns)),
        return_std=float(np.std(returns)),
        optimal_return=None,
        num_episodes=config.num_episodes,
        episode=_shown(make, policy, seed),
        grid=None,
    )


def returns_of_episodes(
    make: Callable[[str | None], gymnasium.Env[Any, Any]],
    policy: Policy,
    seeds: Sequence[int],
    *,
    max_steps: int,
    record: Callable[[RecordedEpisode], None] | None = None,
) -> list[float]:
    """One episode for each seed, cut after `max_steps`. `record` is given each of them."""
    returns: list[float] = []
    for first in range(0, len(seeds), MAX_SIDE_BY_SIDE):
        some = seeds[first : first + MAX_SIDE_BY_SIDE]
        tracks = _play([make(None) for _ in some], policy, some, max_steps=max_steps, is_kept=record is not None)
        returns += [track.total for track in tracks]
        if record is not None:
            for track in tracks:
                record(track.episode())
    return returns


@dataclass(slots=True, kw_only=True)
class _Track:
    """One episode while it is played."""

    last_observation: Any
    total: float = 0.0
    is_terminal: bool = False
    kept: list[tuple[Any, Any, float]] = field(default_factory=list)  # observation, action, reward of each step, if kept

    def episode(self) -> RecordedEpisode:
        observations, actions, rewards = zip(*self.kept, strict=True)
        return RecordedEpisode(
            observations=np.stack([*map(np.asarray, observations), np.asarray(self.last_observation)]),
            actions=np.stack(list(map(np.asarray, actions))),
            rewards=np.array(rewards, dtype=np.float64),
            is_terminal=self.is_terminal,
        )


def _play(
    envs: list[gymnasium.Env[Any, Any]], policy: Policy, seeds: Sequence[int], *, max_steps: int, is_kept: bool
) -> list[_Track]:
    """One episode of each environment."""
    tracks = [_Track(last_observation=env.reset(seed=seed)[0]) for env, seed in zip(envs, seeds, strict=True)]
    playing = list(range(len(envs)))
    policy.begin(len(envs))
    for _ in range(max_steps):
        actions = policy.act([tracks[index].last_observation for index in playing], playing)
        still = []
        for index, action in zip(playing, actions, strict=True):
            track = tracks[index]
            observation, reward, track.is_terminal, is_cut, _ = envs[index].step(action)
            track.total += float(reward)
            if is_kept:
                track.kept.append((track.last_observation, action, float(reward)))
            track.last_observation = observation
            if not (track.is_terminal or is_cut):
                still.append(index)
        playing = still
        if not playing:
            break
    for env in envs:
        env.close()
    return tracks


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
