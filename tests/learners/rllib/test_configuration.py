"""Settings reach RLlib under its own names, and what it does not know is refused before Ray starts."""

from typing import Any

import gymnasium
import pytest
from gymnasium.spaces import Box, Discrete, Space
from pydantic import TypeAdapter, ValidationError

from cluster.errors import ConfigError
from learners.rllib.configuration import algorithm_config, observation_connector
from learners.settings.environments.rllib import RLlibLearnerConfig

PPO: dict[str, Any] = {"algorithm": "rllib_ppo", "num_env_steps": 1000}
IMPALA: dict[str, Any] = {"algorithm": "rllib_impala", "num_env_steps": 1000}
APPO: dict[str, Any] = {"algorithm": "rllib_appo", "num_env_steps": 1000}
DQN: dict[str, Any] = {"algorithm": "rllib_dqn", "num_env_steps": 1000}
SAC: dict[str, Any] = {"algorithm": "rllib_sac", "num_env_steps": 1000}
BC: dict[str, Any] = {"algorithm": "rllib_bc", "num_env_steps": 1000, "input_": ["runs/a"]}
MARWIL: dict[str, Any] = BC | {"algorithm": "rllib_marwil"}


def learner(values: dict[str, Any]) -> RLlibLearnerConfig:
    found: RLlibLearnerConfig = TypeAdapter(RLlibLearnerConfig).validate_python(values)
    return found


def rllib_config(values: dict[str, Any]) -> Any:
    return algorithm_config(learner(values), gymnasium.make("CartPole-v1"))


@pytest.mark.parametrize(
    ("values", "key", "expected"),
    [
        (PPO | {"gamma": 0.9}, "gamma", 0.9),
        (PPO | {"lr": 1e-2}, "lr", 1e-2),
        (PPO | {"grad_clip": 3.0}, "grad_clip", 3.0),
        (PPO | {"train_batch_size_per_learner": 500, "minibatch_size": 50}, "total_train_batch_size", 500),
        (PPO | {"minibatch_size": 64}, "minibatch_size", 64),
        (PPO | {"num_epochs": 2}, "num_epochs", 2),
        (PPO | {"lambda_": 0.5}, "lambda_", 0.5),
        (PPO | {"clip_param": 0.1}, "clip_param", 0.1),
        (PPO | {"vf_clip_param": 3.0}, "vf_clip_param", 3.0),
        (PPO | {"vf_loss_coeff": 3.0}, "vf_loss_coeff", 3.0),
        (PPO | {"entropy_coeff": 0.01}, "entropy_coeff", 0.01),
        (PPO | {"use_kl_loss": True}, "use_kl_loss", True),
        (PPO | {"kl_coeff": 0.3}, "kl_coeff", 0.3),
        (PPO | {"kl_target": 0.02}, "kl_target", 0.02),
        (PPO | {"num_env_runners": 3}, "num_env_runners", 3),
        (PPO | {"num_envs_per_env_runner": 5}, "num_envs_per_env_runner", 5),
        (PPO | {"num_cpus_per_env_runner": 0.5}, "num_cpus_per_env_runner", 0.5),
        (PPO | {"num_learners": 2}, "num_learners", 2),
        (PPO | {"num_cpus_per_learner": 0.5}, "num_cpus_per_learner", 0.5),
        (PPO | {"num_gpus_per_learner": 0.25}, "num_gpus_per_learner", 0.25),
        (PPO | {"max_restarts": 4}, "max_num_env_runner_restarts", 4),
        (PPO | {"options": {"shuffle_batch_per_epoch": False}}, "shuffle_batch_per_epoch", False),
        (PPO | {"options": {"rollout_fragment_length": 256}}, "rollout_fragment_length", 256),
        (PPO | {"options": {"min_time_s_per_iteration": 2}}, "min_time_s_per_iteration", 2),
        (IMPALA | {"num_env_runners": 3}, "num_env_runners", 3),
        (IMPALA | {"lr": 1e-2}, "lr", 1e-2),
        (IMPALA | {"grad_clip": 3.0}, "grad_clip", 3.0),
        (IMPALA | {"train_batch_size_per_learner": 300}, "total_train_batch_size", 300),
        (IMPALA | {"train_batch_size_per_learner": 300}, "min_sample_timesteps_per_iteration", 1200),
        (IMPALA | {"rollout_fragment_length": 20}, "rollout_fragment_length", 20),
        (IMPALA | {"broadcast_interval": 3}, "broadcast_interval", 3),
        (IMPALA | {"vf_loss_coeff": 3.0}, "vf_loss_coeff", 3.0),
        (IMPALA | {"entropy_coeff": 0.3}, "entropy_coeff", 0.3),
        (IMPALA | {"vtrace_clip_rho_threshold": 2.0}, "vtrace_clip_rho_threshold", 2.0),
        (IMPALA | {"vtrace_clip_pg_rho_threshold": 2.0}, "vtrace_clip_pg_rho_threshold", 2.0),
        (APPO | {"clip_param": 0.1}, "clip_param", 0.1),
        (APPO | {"circular_buffer_num_batches": 3}, "circular_buffer_num_batches", 3),
        (APPO | {"circular_buffer_iterations_per_batch": 3}, "circular_buffer_iterations_per_batch", 3),
        (APPO | {"target_network_update_freq": 3}, "target_network_update_freq", 3),
        (APPO | {"tau": 0.5}, "tau", 0.5),
        (DQN | {"lr": [[0, 1e-2], [50, 1e-3]]}, "lr", ((0, 1e-2), (50, 1e-3))),
        (DQN | {"double_q": False}, "double_q", False),
        (DQN | {"dueling": False}, "dueling", False),
        (DQN | {"n_step": 3}, "n_step", 3),
        (DQN | {"num_atoms": 5}, "num_atoms", 5),
        (DQN | {"v_min": -3.0}, "v_min", -3.0),
        (DQN | {"v_max": 3.0}, "v_max", 3.0),
        (DQN | {"epsilon": [[0, 1.0], [50, 0.1]]}, "epsilon", ((0, 1.0), (50, 0.1))),
        (DQN | {"num_steps_sampled_before_learning_starts": 7}, "num_steps_sampled_before_learning_starts", 7),
        (DQN | {"training_intensity": 8.0}, "training_intensity", 8.0),
        (DQN | {"target_network_update_freq": 9}, "target_network_update_freq", 9),
        (DQN | {"tau": 0.5}, "tau", 0.5),
        (DQN | {"train_batch_size_per_learner": 16}, "total_train_batch_size", 16),
        (SAC | {"actor_lr": 1e-2}, "actor_lr", 1e-2),
        (SAC | {"critic_lr": 1e-2}, "critic_lr", 1e-2),
        (SAC | {"alpha_lr": 1e-2}, "alpha_lr", 1e-2),
        (SAC, "lr", None),
        (SAC | {"twin_q": False}, "twin_q", False),
        (SAC | {"initial_alpha": 0.5}, "initial_alpha", 0.5),
        (SAC | {"target_entropy": -2.0}, "target_entropy", -2.0),
        (SAC | {"n_step": 2}, "n_step", 2),
        (SAC | {"target_network_update_freq": 9}, "target_network_update_freq", 9),
        (SAC | {"tau": 0.5}, "tau", 0.5),
        (SAC | {"train_batch_size_per_learner": 16}, "total_train_batch_size", 16),
        (SAC | {"gamma": 0.9}, "gamma", 0.9),
        (BC | {"lr": 1e-2}, "lr", 1e-2),
        (BC | {"train_batch_size_per_learner": 16}, "total_train_batch_size", 16),
        (BC | {"num_learners": 2}, "num_learners", 2),
        (BC, "beta", 0.0),
        (MARWIL | {"beta": 0.5}, "beta", 0.5),
        (MARWIL | {"gamma": 0.9}, "gamma", 0.9),
        (MARWIL | {"lambda_": 0.5}, "lambda_", 0.5),
        (MARWIL | {"vf_coeff": 0.5}, "vf_coeff", 0.5),
        (MARWIL | {"moving_average_sqd_adv_norm_start": 9.0}, "moving_average_sqd_adv_norm_start", 9.0),
        (MARWIL | {"moving_average_sqd_adv_norm_update_rate": 0.5}, "moving_average_sqd_adv_norm_update_rate", 0.5),
    ],
)
def test_every_setting_reaches_rllib(values: dict[str, Any], key: str, expected: object) -> None:
    assert getattr(rllib_config(values), key) == expected


def test_the_replay_buffer_is_one_of_two() -> None:
    prioritized = rllib_config(DQN | {"replay_buffer": {"capacity": 9, "alpha": 0.5, "beta": 0.7}}).replay_buffer_config
    assert prioritized == {"type": "PrioritizedEpisodeReplayBuffer", "capacity": 9, "alpha": 0.5, "beta": 0.7}
    uniform = rllib_config(DQN | {"replay_buffer": {"capacity": 9, "prioritized": False}}).replay_buffer_config
    assert uniform == {"type": "EpisodeReplayBuffer", "capacity": 9}


def test_the_network_is_rllibs_model_config() -> None:
    network = {"fcnet_hiddens": [8], "fcnet_activation": "relu", "head_fcnet_hiddens": [4], "options": {"use_lstm": True}}
    found = rllib_config(PPO | {"network": network | {"vf_share_layers": True}}).model_config
    assert (found["fcnet_hiddens"], found["fcnet_activation"], found["head_fcnet_hiddens"]) == ([8], "relu", [4])
    assert (found["vf_share_layers"], found["use_lstm"]) == (True, True)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (PPO | {"options": {"bogus": 1}}, r"learner\.options\.bogus: RLlib has no such setting"),
        (PPO | {"options": {"grad_clip_byy": 1}}, r"did you mean grad_clip_by\?"),
        (PPO | {"options": {"lr": 1}}, r"learner\.options\.lr: is a setting of its own"),
        (PPO | {"options": {"double_q": True}}, r"learner\.options\.double_q: RLlib has no such setting"),
        (PPO | {"network": {"options": {"fcnet_hidden": 1}}}, r"learner\.network\.options\.fcnet_hidden: .* fcnet_hiddens\?"),
        (PPO | {"options": {"rollout_fragment_length": 3000}}, "RLlib refuses the settings: .*rollout_fragment_length"),
        (DQN | {"options": {"td_error_loss_fn": "cubic"}}, "RLlib refuses the settings: .*td_error_loss_fn"),
    ],
)
def test_what_rllib_does_not_know_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        rllib_config(values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (PPO | {"minibatch_size": 4000}, "minibatch_size=4000 is more than train_batch_size_per_learner=2048"),
        (DQN | {"epsilon": [[10, 1.0], [20, 0.5]]}, "the first of step 0"),
        (PPO | {"lr": [[0, 1e-3]]}, "two or more pairs"),
        (DQN | {"lr": 2.0}, "less than 1"),
        (DQN | {"epsilon": [[0, 1.0], [0, 0.5]]}, "in rising order"),
        (DQN | {"epsilon": [[0, 2.0], [9, 0.1]]}, "value from 0 to 1"),
        (DQN | {"v_min": 10.0}, "v_min=10 must be below v_max=10"),
        (PPO | {"double_q": True}, "double_q"),
        (IMPALA | {"num_env_runners": 0}, "num_env_runners"),
        (IMPALA | {"clip_param": 0.2}, "clip_param"),
        (SAC | {"lr": 1e-3}, "lr"),
        (SAC | {"epsilon": [[0, 1.0]]}, "epsilon"),
        (BC | {"num_env_runners": 2}, "num_env_runners"),
        (BC | {"beta": 1.0}, "beta"),
        (BC | {"input_": []}, "input_"),
        (MARWIL | {"beta": 0.0}, "beta"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        learner(values)


@pytest.mark.parametrize(
    ("space", "is_changed"),
    [(Discrete(3), True), (Box(0, 1, (4,)), False), (Box(0, 1, (8, 8, 3)), False), (Box(0, 1, (2, 2)), True)],
)
def test_observations_that_are_no_vector_become_one(space: Space[Any], is_changed: bool) -> None:
    assert (observation_connector(space) is not None) == is_changed
