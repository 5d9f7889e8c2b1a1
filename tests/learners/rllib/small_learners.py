"""RLlib's algorithms in a size that takes a second."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from learners.environments.making import make_environment
from learners.environments.recorded import RecordedEpisode
from learners.rllib.configuration import algorithm_config
from learners.rllib.recorded import RecordedEpisodes
from learners.rllib.training import RLlibTraining
from learners.settings.environments.rllib import RLlibLearnerConfig
from learners.settings.environments.task import GymnasiumTaskConfig

CART_POLE = GymnasiumTaskConfig(env="CartPole-v1")
NETWORK = {"fcnet_hiddens": [16]}
PPO: dict[str, Any] = {
    "algorithm": "rllib_ppo",
    "num_env_steps": 1000,
    "network": NETWORK,
    "num_envs_per_env_runner": 2,
    "train_batch_size_per_learner": 128,
    "minibatch_size": 64,
    "num_epochs": 2,
    "use_kl_loss": True,
}
DQN: dict[str, Any] = {
    "algorithm": "rllib_dqn",
    "num_env_steps": 1000,
    "network": NETWORK,
    "num_steps_sampled_before_learning_starts": 50,
    "target_network_update_freq": 30,
    "epsilon": [[0, 1.0], [300, 0.1]],
    "options": {"min_sample_timesteps_per_iteration": 50},
}


APPO: dict[str, Any] = {
    "algorithm": "rllib_appo",
    "num_env_steps": 1000,
    "network": NETWORK,
    "num_env_runners": 1,
    "num_cpus_per_env_runner": 0.5,
    "num_envs_per_env_runner": 2,
    "train_batch_size_per_learner": 64,
    "rollout_fragment_length": 16,
}
IMPALA: dict[str, Any] = APPO | {"algorithm": "rllib_impala"}
SAC: dict[str, Any] = {
    "algorithm": "rllib_sac",
    "num_env_steps": 1000,
    "network": NETWORK,
    "num_steps_sampled_before_learning_starts": 50,
    "train_batch_size_per_learner": 16,
    "options": {"min_sample_timesteps_per_iteration": 50},
}
BC: dict[str, Any] = {
    "algorithm": "rllib_bc",
    "input_": ["a_file"],
    "num_env_steps": 600,
    "network": NETWORK,
    "train_batch_size_per_learner": 100,
}
MARWIL: dict[str, Any] = BC | {"algorithm": "rllib_marwil"}


def learner_of(values: dict[str, Any]) -> RLlibLearnerConfig:
    found: RLlibLearnerConfig = TypeAdapter(RLlibLearnerConfig).validate_python(values)
    return found


def build_training(
    values: dict[str, Any],
    task: GymnasiumTaskConfig = CART_POLE,
    *,
    seed: int = 0,
    recorded: Callable[[], RecordedEpisodes] | None = None,
) -> RLlibTraining:
    config = algorithm_config(learner_of(values), make_environment(task))
    return RLlibTraining(
        config, functools.partial(make_environment, task), seed=seed, recorded=None if recorded is None else recorded()
    )


def play(task: GymnasiumTaskConfig, *, num_episodes: int, choose: Callable[[Any], Any]) -> list[RecordedEpisode]:
    """Of at most 50 steps. `choose` gives an action for an observation."""
    env, episodes = make_environment(task), []
    for seed in range(num_episodes):
        observations, actions = [env.reset(seed=seed)[0]], []
        rewards: list[float] = []
        is_terminal = is_cut = False
        while not (is_terminal or is_cut or len(rewards) >= 50):
            actions.append(choose(observations[-1]))
            observation, reward, is_terminal, is_cut, _ = env.step(actions[-1])
            observations.append(observation)
            rewards.append(float(reward))
        episodes.append(
            RecordedEpisode(
                observations=np.stack(list(map(np.asarray, observations))),
                actions=np.stack(list(map(np.asarray, actions))),
                rewards=np.array(rewards),
                is_terminal=is_terminal,
            )
        )
    return episodes
