"""The worth of a policy over finitely many states: exactly where the environment tells its model, else by episodes."""

from dataclasses import dataclass

import numpy as np

from cluster.seeding import derive_seed
from learners.environments.drawn import Frames, shown_mode
from learners.environments.finite import Environment, build_environment
from learners.environments.grid import grid_of
from learners.environments.markov_model import Array, MarkovModel
from learners.evaluation.returns import EnvironmentEvaluation, ShownEpisode
from learners.settings.environments.task import EpisodeEvaluationConfig, GymnasiumTaskConfig

MAX_SHOWN_STEPS = 200  # of the episode that is shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluator:
    """Produced by a run's stage."""

    task: GymnasiumTaskConfig
    environment: Environment
    model: MarkovModel | None
    optimal_return: float | None  # where the model is known
    config: EpisodeEvaluationConfig
    gamma: float
    seed: int

    def evaluate(self, policy_SA: Array, values_S: Array) -> EnvironmentEvaluation:
        """`values_S`: what the learner itself expects in each state, for the picture."""
        if self.model is not None:
            mean, std, num_episodes = self.model.expected_return(policy_SA, gamma=self.gamma), None, 0
        else:
            num_episodes = self.config.num_episodes
            returns = [self._return(policy_SA, episode) for episode in range(num_episodes)]
            mean, std = float(np.mean(returns)), float(np.std(returns))
        return EnvironmentEvaluation(
            is_discounted=True,
            return_mean=mean,
            return_std=std,
            optimal_return=self.optimal_return,
            num_episodes=num_episodes,
            episode=self._shown(policy_SA),
            grid=grid_of(self.environment, policy_SA, values_S),
        )

    def _return(self, policy_SA: Array, episode: int) -> float:
        """Discounted, of one episode."""
        generator = np.random.default_rng(derive_seed(self.seed, "evaluation actions", episode))
        state = self.environment.reset(derive_seed(self.seed, "evaluation environment", episode))
        total, discount = 0.0, 1.0
        for _ in range(self.config.max_episode_steps):
            state, reward, is_terminal, is_cut = self.environment.step(_drawn(policy_SA[state], generator))
            total, discount = total + discount * reward, discount * self.gamma
            if is_terminal or is_cut:
                break
        return total

    def _shown(self, policy_SA: Array) -> ShownEpisode:
        """The same start before and after; the environment's draws are those of the seed."""
        shown = build_environment(self.task, render_mode=shown_mode(self.environment.env))
        generator = np.random.default_rng(derive_seed(self.seed, "shown actions"))
        state = shown.reset(derive_seed(self.seed, "shown environment"))
        frames, total, num_steps, is_terminal, is_cut = Frames(shown.env), 0.0, 0, False, False
        frames.add()
        while not (is_terminal or is_cut or num_steps >= MAX_SHOWN_STEPS):
            state, reward, is_terminal, is_cut = shown.step(_drawn(policy_SA[state], generator))
            total, num_steps = total + reward, num_steps + 1
            frames.add()
        shown.env.close()
        return ShownEpisode(frames=frames.shown(), num_steps=num_steps, total=total, is_cut=not is_terminal, film=frames.film())


def _drawn(probabilities_A: Array, generator: np.random.Generator) -> int:
    return int(generator.choice(len(probabilities_A), p=probabilities_A))
