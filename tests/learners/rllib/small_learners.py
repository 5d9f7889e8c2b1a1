"""RLlib's algorithms in a size that takes a second."""

import functools
from typing import Any

from learners.environments.making import make_environment
from learners.rllib.configuration import RLlibLearnerConfig, algorithm_config
from learners.rllib.training import RLlibTraining
from learners.settings.environments.rllib import RLlibDQNLearnerConfig, RLlibPPOLearnerConfig
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
    "options": {"min_sample_timesteps_per_iteration": 100},
}


def learner_of(values: dict[str, Any]) -> RLlibLearnerConfig:
    is_ppo = values["algorithm"] == "rllib_ppo"
    return RLlibPPOLearnerConfig(**values) if is_ppo else RLlibDQNLearnerConfig(**values)


def build_training(values: dict[str, Any], task: GymnasiumTaskConfig = CART_POLE, *, seed: int = 0) -> RLlibTraining:
    config = algorithm_config(learner_of(values), make_environment(task))
    return RLlibTraining(config, functools.partial(make_environment, task), seed=seed)
