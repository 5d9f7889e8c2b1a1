"""Learning from episodes: the loop, what it measures, and the arrays from which it goes on bit by bit."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from cluster.seeding import derive_seed
from learners.environments.finite import Environment
from learners.settings.environments.tabular import (
    EpisodicLearnerConfig,
    MonteCarloLearnerConfig,
    TabularReinforceLearnerConfig,
    TemporalDifferenceLearnerConfig,
)
from learners.tabular.episodes import Agent, Turn, generator_of, play_episode
from learners.tabular.expected_sarsa import ExpectedSarsa
from learners.tabular.monte_carlo import MonteCarlo
from learners.tabular.q_learning import QLearning
from learners.tabular.reinforce import Reinforce
from learners.tabular.sarsa import Sarsa

TEMPORAL_DIFFERENCES: dict[str, type[QLearning | Sarsa | ExpectedSarsa]] = {
    "q_learning": QLearning,
    "sarsa": Sarsa,
    "expected_sarsa": ExpectedSarsa,
}
WINDOW = ("total", "discounted", "num_steps", "is_cut")  # what is kept of each episode until it is reported


def build_agent(config: EpisodicLearnerConfig, environment: Environment) -> Agent:
    """The method with its tables at their start."""
    sizes = environment.num_states, environment.num_actions
    match config:
        case MonteCarloLearnerConfig():
            return MonteCarlo(*sizes, gamma=config.gamma)
        case TemporalDifferenceLearnerConfig():
            return TEMPORAL_DIFFERENCES[config.algorithm](*sizes, gamma=config.gamma)
        case TabularReinforceLearnerConfig():
            return Reinforce(*sizes, gamma=config.gamma, value_step_size=config.value_step_size)


class TableTraining:
    """Episodes in order. Raises whatever the environment raises."""

    def __init__(self, environment: Environment, config: EpisodicLearnerConfig, *, seed: int) -> None:
        self.agent = build_agent(config, environment)
        self.num_done = 0  # episodes
        self._environment = environment
        self._config = config
        self._seed = seed
        self._window: dict[str, list[float]] = {name: [] for name in WINDOW}

    def run_episode(self) -> None:
        """The next one."""
        outcome = play_episode(
            self._environment,
            self.agent,
            self._turn(self.num_done),
            seed=derive_seed(self._seed, "environment", self.num_done),
            gamma=self._config.gamma,
        )
        for name, value in zip(WINDOW, (outcome.total, outcome.discounted, outcome.num_steps, outcome.is_cut), strict=True):
            self._window[name].append(float(value))
        self.num_done += 1

    def report(self) -> dict[str, float]:
        """Metrics of the episodes since the last report."""
        turn, window = self._turn(self.num_done - 1), self._window
        self._window = {name: [] for name in WINDOW}
        metrics = {
            "episode/return_mean": float(np.mean(window["total"])),
            "episode/return_std": float(np.std(window["total"])),
            "episode/discounted_return_mean": float(np.mean(window["discounted"])),
            "episode/discounted_return_std": float(np.std(window["discounted"])),
            "episode/length_mean": float(np.mean(window["num_steps"])),
            "episode/cut_frac": float(np.mean(window["is_cut"])),
        }
        if not isinstance(self._config, MonteCarloLearnerConfig):
            metrics["episode/step_size"] = turn.step_size
        if not isinstance(self._config, TabularReinforceLearnerConfig):
            metrics["episode/epsilon"] = turn.epsilon
        return metrics

    def state(self) -> dict[str, NDArray[np.float64]]:
        """All that the following episodes and reports depend on, but for `num_done`."""
        return {**self.agent.tables, **{f"window.{name}": np.array(values) for name, values in self._window.items()}}

    def restore(self, state: Mapping[str, NDArray[np.float64]], *, num_done: int) -> None:
        """Go on from there. Raises `KeyError` or `ValueError` for arrays that do not fit."""
        for name, table in self.agent.tables.items():
            table[...] = state[name]
        self._window = {name: state[f"window.{name}"].tolist() for name in WINDOW}
        self.num_done = num_done

    def _turn(self, episode: int) -> Turn:
        config, num_episodes = self._config, self._config.num_episodes
        return Turn(
            generator=generator_of(self._seed, "actions", episode),
            epsilon=0.0
            if isinstance(config, TabularReinforceLearnerConfig)
            else config.epsilon.at(episode, num_episodes=num_episodes),
            step_size=0.0
            if isinstance(config, MonteCarloLearnerConfig)
            else config.step_size.at(episode, num_episodes=num_episodes),
        )
