"""Settings as RLlib's own configuration, with every name checked before Ray starts."""

import difflib
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
from gymnasium.spaces import Box
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.appo import APPOConfig
from ray.rllib.algorithms.bc import BCConfig
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.algorithms.marwil import MARWILConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.sac import SACConfig
from ray.rllib.connectors.env_to_module import FlattenObservations
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from cluster.errors import ConfigError
from learners.settings.environments.rllib import (
    NetworkConfig,
    ReplayBufferConfig,
    RLlibAsynchronousConfig,
    RLlibLearnerConfig,
    RLlibRecordedConfig,
    RLlibReplayConfig,
)

CONFIGS: Mapping[str, type[AlgorithmConfig]] = {
    "rllib_ppo": PPOConfig,
    "rllib_impala": IMPALAConfig,
    "rllib_appo": APPOConfig,
    "rllib_dqn": DQNConfig,
    "rllib_sac": SACConfig,
    "rllib_bc": BCConfig,
    "rllib_marwil": MARWILConfig,
}
OURS = {
    "algorithm",
    "num_env_steps",
    "network",
    "num_threads",
    "max_restarts",
    "options",
    "replay_buffer",
    "input_",
}  # not RLlib's
RUNNERS = {"num_env_runners", "num_envs_per_env_runner", "num_cpus_per_env_runner", "rollout_fragment_length"}
LEARNERS = {"num_learners", "num_cpus_per_learner", "num_gpus_per_learner"}
SAMPLE_TIMEOUT_S = 600.0  # RLlib's own 60 drop what slow environments have sampled
ITERATION_BATCHES = 4  # of an algorithm that takes what has come: a line of metrics for so many
RUNNER_PROBE_S = 60.0  # until an env runner that was restarted answers


def algorithm_config(
    learner: RLlibLearnerConfig, env: gymnasium.Env[Any, Any], *, module_spec: RLModuleSpec | None = None
) -> AlgorithmConfig:
    """All but the environment's name and the seed.

    `env`: one to look at. `module_spec`: a network of one's own in the place of the perceptron. Raises `ConfigError`.
    """
    config = CONFIGS[learner.algorithm]()
    values = {name: value for name, value in learner if name not in OURS}
    if isinstance(learner, RLlibRecordedConfig):
        _learn_from_records(config, values)
    config.env_runners(
        **{name: value for name, value in values.items() if name in RUNNERS},
        sample_timeout_s=SAMPLE_TIMEOUT_S,
        env_to_module_connector=observation_connector(env.observation_space),
    )
    config.learners(**{name: value for name, value in values.items() if name in LEARNERS})
    config.training(**{name: value for name, value in values.items() if name not in RUNNERS | LEARNERS})
    if isinstance(learner, RLlibReplayConfig):
        config.training(replay_buffer_config=_replay_buffer(learner.replay_buffer))
    config.reporting(min_time_s_per_iteration=None)  # iterations end by steps: by the clock, no run would be like another
    if isinstance(learner, RLlibAsynchronousConfig):  # else an iteration ends before anything has come
        config.reporting(min_sample_timesteps_per_iteration=ITERATION_BATCHES * learner.train_batch_size_per_learner)
    if module_spec is None:
        config.rl_module(model_config=_network(learner.network))
    else:
        config.rl_module(rl_module_spec=module_spec)
    config.fault_tolerance(
        max_num_env_runner_restarts=learner.max_restarts,
        delay_between_env_runner_restarts_s=0,
        env_runner_health_probe_timeout_s=RUNNER_PROBE_S,
    )
    _set_options(config, learner)
    _check(config)
    return config


def observation_connector(space: gymnasium.Space[Any]) -> Callable[..., Any] | None:
    """What makes a vector of an observation that is none; vectors and images go to the network as they are."""
    if isinstance(space, Box) and len(space.shape) in (1, 3):
        return None
    return lambda env, spaces, device: FlattenObservations()


def _check(config: AlgorithmConfig) -> None:
    logger = logging.getLogger("ray.rllib")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns everybody that there is a new version of its interfaces
    try:
        config.copy(copy_frozen=False).validate()
    except (ValueError, TypeError) as error:
        raise ConfigError(f"learner: RLlib refuses the settings: {' '.join(str(error).split())}") from error
    finally:
        logger.setLevel(level)


def _network(network: NetworkConfig) -> DefaultModelConfig:
    own = {name: list(value) if isinstance(value, tuple) else value for name, value in network if name != "options"}
    known = DefaultModelConfig.__dataclass_fields__.keys()
    _refuse_others(network.options, own=set(own), known=set(known), where="learner.network.options")
    return DefaultModelConfig(**own, **network.options)


def _learn_from_records(config: AlgorithmConfig, values: dict[str, Any]) -> None:
    """`learners.rllib.recorded` feeds the learners. An environment is made all the same, for its spaces and the network."""
    config._is_online = True  # RLlib makes no environment otherwise, and has no public setting for it (ray 2.60)
    config.offline_data(dataset_num_iters_per_learner=1)  # RLlib asks for it
    if "lambda_" in values:
        config.lambda_ = values.pop("lambda_")  # which `MARWILConfig.training` does not take


def _replay_buffer(buffer: ReplayBufferConfig) -> dict[str, Any]:
    if not buffer.prioritized:
        return {"type": "EpisodeReplayBuffer", "capacity": buffer.capacity}
    return {
        "type": "PrioritizedEpisodeReplayBuffer",
        "capacity": buffer.capacity,
        "alpha": buffer.alpha,
        "beta": buffer.beta,
    }


def _set_options(config: AlgorithmConfig, learner: RLlibLearnerConfig) -> None:
    methods: tuple[Callable[..., Any], ...] = (config.training, config.env_runners, config.learners, config.reporting)
    parameters = [_parameters(type(config), method.__name__) for method in methods]
    known = set().union(*parameters)
    _refuse_others(learner.options, own=set(type(learner).model_fields), known=known, where="learner.options")
    for method, names in zip(methods, parameters, strict=True):
        method(**{name: value for name, value in learner.options.items() if name in names})


def _parameters(config: type[AlgorithmConfig], method: str) -> set[str]:
    """Names that a method takes, with those that it hands on to the same method of the classes above."""
    found: set[str] = set()
    for owner in config.__mro__:
        if method in vars(owner):
            found |= {
                parameter.name
                for parameter in inspect.signature(vars(owner)[method]).parameters.values()
                if parameter.kind is parameter.KEYWORD_ONLY
            }
    return found


def _refuse_others(options: Mapping[str, Any], *, own: set[str], known: set[str], where: str) -> None:
    """RLlib accepts any key in `update_from_dict`, and ignores it."""
    problems = []
    for name in options:
        if name in own:
            problems.append(f"{where}.{name}: is a setting of its own; set it beside `options`")
        elif name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            problems.append(f"{where}.{name}: RLlib has no such setting{f'; did you mean {near[0]}?' if near else ''}")
    if problems:
        raise ConfigError(problems)
