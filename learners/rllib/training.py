"""One of RLlib's algorithms with its processes: iterations, and the state from which it goes on.

Between two checkpoints a run is a function of the state at the first, of the seed and of the number of steps done: whenever a
checkpoint is taken or restored, every generator of random numbers is set anew, and episodes in progress are dropped. So a
resumed run is the same as one that was not interrupted, as far as RLlib's processes answer in the same order: IMPALA's and APPO's
do not.
"""

import copy
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import ray
from ray.actor import ActorHandle
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.dqn.dqn_learner import DQNLearner
from ray.rllib.algorithms.marwil.marwil_learner import MARWILLearner
from ray.rllib.algorithms.ppo.ppo_learner import PPOLearner
from ray.rllib.algorithms.sac.sac_learner import SACLearner
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.learner.learner import Learner
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.utils.debug.deterministic import update_global_seed_if_necessary
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS
from ray.tune.registry import register_env
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.errors import RaywardError
from cluster.processes.hosts.folder import this_node
from cluster.seeding import derive_seed
from learners.rllib.environment import (
    ENVIRONMENT_NAME,
    EnvironmentCreator,
    FailureRecord,
    MakeEnvironment,
    SideBySide,
    check_environment,
)
from learners.rllib.greedy import GreedyPolicy
from learners.rllib.metrics import metrics_of, record_episode
from learners.rllib.recorded import NUM_STEPS, RecordedEpisodes, learning_from_records

LEARNER_PARTS = (COMPONENT_RL_MODULE, "optimizer", "weights_seq_no")  # of its state, what later updates depend on


class RLlibTraining:
    """Raises what of Rayward's errors the environment raises, whichever process steps it; Ray's own errors for learners that are
    lost."""

    def __init__(
        self,
        config: AlgorithmConfig,
        make: MakeEnvironment,
        *,
        seed: int,
        recorded: RecordedEpisodes | None = None,
    ) -> None:
        """`make` works in any process. `config`: all but the environment and the seed. `recorded`: what to learn from in the
        place of the environment."""
        self._seed = seed
        self._recorded = recorded
        self._record = _record_beside_the_driver() if config.num_env_runners else None
        register_env(ENVIRONMENT_NAME, EnvironmentCreator(make=make, record=self._record))
        config = config.copy(copy_frozen=False)
        config.environment(ENVIRONMENT_NAME)
        if isinstance(make, SideBySide):
            config.env_runners(gym_env_vectorize_mode=gymnasium.VectorizeMode.VECTOR_ENTRY_POINT)
        config.debugging(seed=derive_seed(seed, "rllib"))
        config.callbacks(on_episode_end=record_episode)
        if self._record is not None:
            config.algo_class = _watching(config.algo_class, self._record)
        if recorded is not None:
            config.algo_class = learning_from_records(config.algo_class)
        self._algorithm: Algorithm = config.build_algo()
        self._algorithm.recorded = recorded
        self.reseed()

    @property
    def num_env_steps(self) -> int:
        """Taken so far, over all environments."""
        return int(self._algorithm.metrics.peek(NUM_STEPS, default=0))

    def iterate(self) -> dict[str, float]:
        """Sample, learn; returns the metrics of both."""
        before = self.num_env_steps
        try:
            result = self._algorithm.train()
        except RuntimeError as error:
            if isinstance(error.__cause__, RaywardError):  # as RLlib raises it where the driver steps them
                raise error.__cause__ from error
            raise
        if self.num_env_steps == before:
            if self._record is not None:
                check_environment(self._record)
            raise RaywardError(
                "no env runner has sampled anything; the logs of those that ended say why, and learner.max_restarts says how "
                "often each is started again"
            )
        return metrics_of(result)

    def policy(self, env: gymnasium.Env[Any, Any], *, is_flat: bool, weights: Mapping[str, Any] | None = None) -> GreedyPolicy:
        """What has been learned so far, or was when `weights` were taken. `is_flat`: see `GreedyPolicy`."""
        return GreedyPolicy(self.module(weights), env.observation_space, env.action_space, is_flat=is_flat)

    def module(self, weights: Mapping[str, Any] | None = None) -> Any:
        """The network of what has been learned so far, in this process. The next iteration may change it."""
        module = self._algorithm.env_runner.module
        module.set_state(self.weights() if weights is None else weights)
        return module

    def weights(self) -> dict[str, Any]:
        """Of the network, as arrays that stay as they are."""
        return copy.deepcopy(self._weights()[COMPONENT_RL_MODULE][DEFAULT_MODULE_ID])

    def reseed(self) -> None:
        """Set every generator from the seed and the number of steps done; each environment begins a new episode."""
        seed = derive_seed(self._seed, "rllib", self.num_env_steps)
        self._algorithm.learner_group.foreach_learner(lambda learner: update_global_seed_if_necessary("torch", seed))
        self._algorithm.env_runner_group.foreach_env_runner(lambda runner: _reseed_runner(runner, seed))
        buffer = self._algorithm.local_replay_buffer
        if buffer is not None:
            buffer.rng = np.random.default_rng(derive_seed(seed, "replay buffer"))
        if self._recorded is not None:
            self._recorded.reseed(derive_seed(seed, "recorded episodes"))

    def state(self) -> dict[str, Any]:
        """All that later iterations depend on after `reseed`: numbers, texts, arrays in dicts, lists and tuples."""
        algorithm = self._algorithm
        learner = algorithm.learner_group.get_state()[COMPONENT_LEARNER]
        counters = algorithm.metrics.get_state()["stats"]
        buffer = algorithm.local_replay_buffer
        return {
            "learner": {name: learner[name] for name in LEARNER_PARTS},
            "learner_beside": _first(algorithm.learner_group.foreach_learner(_beside)),
            "counters": {
                name: stats
                for name, stats in counters.items()
                if name.startswith(f"{ENV_RUNNER_RESULTS}--") and stats["stats_cls_identifier"] == "lifetime_sum"
            },
            "replay_buffer": None if buffer is None else buffer.get_state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from there. To be called before any iteration."""
        algorithm = self._algorithm
        algorithm.learner_group.set_state({COMPONENT_LEARNER: state["learner"]})
        algorithm.learner_group.foreach_learner(lambda learner: _set_beside(learner, state["learner_beside"]))
        algorithm.metrics.set_state({"stats": state["counters"]})
        if algorithm.local_replay_buffer is not None:
            algorithm.local_replay_buffer.set_state(state["replay_buffer"])
        algorithm.env_runner_group.sync_env_runner_states(
            config=algorithm.config,
            env_steps_sampled=self.num_env_steps,
            rl_module_state=self._weights(),
            env_to_module=algorithm.env_to_module_connector,
            module_to_env=algorithm.module_to_env_connector,
        )
        self.reseed()

    def stop(self) -> None:
        """End all processes."""
        self._algorithm.stop()
        if self._record is not None:
            ray.kill(self._record)

    def _weights(self) -> dict[str, Any]:
        return self._algorithm.learner_group.get_state(
            components=f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}", inference_only=True
        )[COMPONENT_LEARNER]


def _record_beside_the_driver() -> ActorHandle:
    """On its node: what is asked when another one is lost must not have been there."""
    here = NodeAffinitySchedulingStrategy(this_node(), soft=False)
    return ray.remote(FailureRecord).options(num_cpus=0, scheduling_strategy=here).remote()


def _watching(algorithm: type[Algorithm], record: ActorHandle) -> type[Algorithm]:
    """Looks, before it starts an env runner again, whether that could help. It travels to all processes with the settings."""

    class Watching(algorithm):
        def restore_env_runners(self, env_runner_group: EnvRunnerGroup) -> list[int]:
            if env_runner_group.num_healthy_remote_env_runners() < env_runner_group.num_remote_env_runners():
                check_environment(record)
            return super().restore_env_runners(env_runner_group)

    return Watching


def _reseed_runner(runner: SingleAgentEnvRunner, seed: int) -> None:
    """RLlib has no method for it: it seeds a runner once, when it is made."""
    own = derive_seed(seed, "env runner", runner.worker_index or 0)
    update_global_seed_if_necessary("torch", own)
    runner._seed = own  # which the environments are reset with
    runner._needs_initial_reset = True


def _beside(learner: Learner) -> dict[str, Any]:
    """What a learner's `get_state` leaves out."""
    found: dict[str, Any] = {}
    if isinstance(learner, PPOLearner):
        found["kl_coeffs"] = {name: float(coeff) for name, coeff in learner.curr_kl_coeffs_per_module.items()}
    if isinstance(learner, DQNLearner):
        found["last_target_updates"] = dict(learner.last_update_ts_by_mid)
    if isinstance(learner, SACLearner):
        found["log_alphas"] = {name: float(alpha.detach()) for name, alpha in learner.curr_log_alpha.items()}
    if isinstance(learner, MARWILLearner):
        found["advantage_norms"] = {name: float(norm) for name, norm in learner.moving_avg_sqd_adv_norms_per_module.items()}
    return found


def _set_beside(learner: Learner, beside: Mapping[str, Any]) -> None:
    for name, coeff in beside.get("kl_coeffs", {}).items():
        learner.curr_kl_coeffs_per_module[name].data.fill_(coeff)
    for name, step in beside.get("last_target_updates", {}).items():
        learner.last_update_ts_by_mid[name] = step
    for name, alpha in beside.get("log_alphas", {}).items():
        learner.curr_log_alpha[name].data.fill_(alpha)
    for name, norm in beside.get("advantage_norms", {}).items():
        learner.moving_avg_sqd_adv_norms_per_module[name].data.fill_(norm)


def _first(results: Any) -> Any:
    """Of calls to all learners, which hold the same. Raises Ray's error where it is lost."""
    [first, *_] = list(results)
    if not first.ok:
        raise first.get()
    return first.get()
