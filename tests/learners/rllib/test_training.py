"""RLlib's algorithms go on from a state as if nothing had happened, and processes that end are told apart."""

import json
import os
import signal
from contextlib import contextmanager
from typing import Any

import pytest
from ray.exceptions import RayError
from safetensors.numpy import load, save

from cluster.errors import EnvironmentFailedError
from cluster.processes.losses import Outcome, outcome_of
from learners.environments.making import make_environment
from learners.environments.rollouts import evaluate_by_episodes
from learners.rllib.plain_state import join, split
from learners.rllib.recorded import RecordedEpisodes
from learners.rllib.training import RLlibTraining
from learners.settings.environments.task import EpisodeEvaluationConfig, GymnasiumTaskConfig
from tests.learners.rllib.small_learners import APPO, BC, CART_POLE, DQN, IMPALA, MARWIL, PPO, SAC, build_training, play

pytestmark = pytest.mark.usefixtures("local_ray")


def mistaken(**options: Any) -> GymnasiumTaskConfig:
    return GymnasiumTaskConfig(env="tests.learners.environments.failing:Mistaken-v0", options=options)


@contextmanager
def running(*arguments: Any, **named: Any) -> Any:
    training = build_training(*arguments, **named)
    try:
        yield training
    finally:
        training.stop()


PENDULUM = GymnasiumTaskConfig(env="Pendulum-v1")


def leaning_poles() -> RecordedEpisodes:
    """CartPole, pushed to where the pole leans."""
    env = make_environment(CART_POLE)
    episodes = play(CART_POLE, num_episodes=20, choose=lambda observation: int(observation[2] > 0))
    return RecordedEpisodes(episodes, env.observation_space, env.action_space)


def through_files(state: Any) -> Any:
    arrays, rest = split(state)
    return join(load(save(arrays)), json.loads(json.dumps(rest, allow_nan=False)))


def bits(state: Any) -> Any:
    """Comparable, without the names that episodes are given at random."""
    arrays, rest = split({name: state[name] for name in ("learner", "learner_beside", "counters")})
    return [array.tobytes() for array in arrays.values()], json.dumps(rest)


def weights_of(training: RLlibTraining) -> list[bytes]:
    return [array.tobytes() for array in training.weights().values()]


def test_a_recurrent_policy_learns_and_plays() -> None:
    network = {"fcnet_hiddens": [8], "options": {"use_lstm": True, "lstm_cell_size": 8, "max_seq_len": 8}}
    with running(PPO | {"network": network}) as training:
        training.iterate()
        policy = training.policy(make_environment(CART_POLE), is_flat=False)
        found = evaluate_by_episodes(
            lambda _: make_environment(CART_POLE), policy, EpisodeEvaluationConfig(num_episodes=3), seed=0
        )
    assert found.return_mean >= 8  # steps that a pole needs to fall, whatever is done


@pytest.mark.parametrize(
    ("values", "others"),
    [
        (PPO, {}),
        (DQN, {}),
        (DQN | {"replay_buffer": {"prioritized": False}}, {}),
        (PPO | {"num_env_runners": 1, "num_cpus_per_env_runner": 0.5}, {}),
        (SAC, {"task": PENDULUM}),
        (BC, {"recorded": leaning_poles}),
        (MARWIL, {"recorded": leaning_poles}),
    ],
    ids=["ppo", "dqn", "dqn-uniform", "ppo-runner", "sac", "bc", "marwil"],
)
def test_a_restored_state_goes_on_bit_by_bit(values: dict[str, Any], others: dict[str, Any]) -> None:
    with running(values, **others) as training:
        for _ in range(3):
            training.iterate()
        state = through_files(training.state())
        num_env_steps = training.num_env_steps
        training.reseed()
        metrics = [training.iterate() for _ in range(3)]
        end = bits(training.state())
    with running(values, **others) as training:
        training.restore(state)
        assert training.num_env_steps == num_env_steps
        assert [training.iterate() for _ in range(3)] == metrics
        assert bits(training.state()) == end


def test_a_seed_makes_a_run_and_another_makes_another() -> None:
    def first_iteration(seed: int) -> dict[str, float]:
        with running(PPO, seed=seed) as training:
            found: dict[str, float] = training.iterate()
            return found

    assert first_iteration(1) == first_iteration(1)
    assert first_iteration(2) != first_iteration(1)


@pytest.mark.parametrize("values", [IMPALA, APPO], ids=["impala", "appo"])
def test_env_runners_that_never_wait_are_learned_from_and_a_state_comes_back(values: dict[str, Any]) -> None:
    with running(values) as training:
        first = weights_of(training)
        metrics = [training.iterate() for _ in range(3)]
        assert weights_of(training) != first
        assert all("episode/return_mean" in line for line in metrics)
        assert any("value/loss" in line for line in metrics)
        num_env_steps = training.num_env_steps
        assert num_env_steps >= 3 * 4 * 64
        state = through_files(training.state())
    with running(values) as training:
        training.restore(state)
        assert training.num_env_steps == num_env_steps
        assert bits(training.state())[0] == bits(state)[0]
        training.iterate()
        assert training.num_env_steps > num_env_steps


def test_metrics_have_our_names() -> None:
    with running(PPO) as training:
        names = set(training.iterate())
    assert names == {
        "episode/return_mean",
        "episode/return_std",
        "episode/length_mean",
        "policy/loss",
        "policy/entropy",
        "policy/approx_kl",
        "policy/kl_coef",
        "value/loss",
        "value/explained_variance",
        "optim/grad_norm",
        "optim/learning_rate",
    }
    with running(DQN) as training:
        names = set(training.iterate())
    assert names >= {"episode/return_mean", "value/loss", "value/q_mean", "value/td_error_mean", "optim/grad_norm"}
    with running(SAC, PENDULUM) as training:
        names = set().union(*(training.iterate() for _ in range(5)))  # an episode has 200 steps
    assert names >= {"episode/return_mean", "policy/loss", "policy/entropy_coef", "value/loss", "value/q_mean"}
    with running(MARWIL, recorded=leaning_poles) as training:
        names = set(training.iterate())
    assert names >= {"policy/loss", "value/loss", "value/explained_variance", "optim/grad_norm"}


@pytest.mark.parametrize("values", [BC, MARWIL], ids=["bc", "marwil"])
def test_recorded_episodes_are_imitated(values: dict[str, Any]) -> None:
    env = make_environment(CART_POLE)
    with running(values | {"lr": 1e-2, "network": {"fcnet_hiddens": [32]}}, recorded=leaning_poles) as training:
        losses = [training.iterate()["policy/loss"] for _ in range(60)]
        assert training.num_env_steps >= 60 * 100
        policy = training.policy(env, is_flat=False)
        seen = [observation for episode in leaning_poles().draw(500) for observation in episode.get_observations()]
        actions = policy.act(seen, range(len(seen)))
    matches = [action == (observation[2] > 0) for action, observation in zip(actions, seen, strict=True)]
    assert losses[-1] < losses[0]
    assert sum(matches) / len(matches) > 0.9  # 0.5 is chance; the rule is a line through the observation


def test_an_episode_that_two_samples_share_counts_each_of_its_steps_once() -> None:
    with running(PPO) as training:
        found = [training.iterate() for _ in range(3)]
    # CartPole rewards each step with 1.
    assert [each["episode/length_mean"] for each in found] == [each["episode/return_mean"] for each in found]


def test_numbered_states_become_vectors_and_actions_fit_their_bounds() -> None:
    lake = GymnasiumTaskConfig(env="FrozenLake-v1")
    with running(PPO, lake) as training:
        training.iterate()
        assert set(training.policy(make_environment(lake), is_flat=True).act(list(range(16)), range(16))) <= {0, 1, 2, 3}
    pendulum = GymnasiumTaskConfig(env="Pendulum-v1")
    env = make_environment(pendulum)
    with running(PPO, pendulum) as training:
        training.iterate()
        [action] = training.policy(env, is_flat=False).act([env.reset(seed=0)[0]], [0])
        assert env.action_space.contains(action)


@pytest.mark.parametrize("num_env_runners", [0, 1])
@pytest.mark.parametrize("options", [{"fails_at_step": 20}, {"fails_at_step": 20, "num_states": 3}])
def test_an_environment_that_raises_is_told_at_once(num_env_runners: int, options: dict[str, Any]) -> None:
    values = PPO | {"num_env_runners": num_env_runners, "num_cpus_per_env_runner": 0.5}
    with (
        running(values, mistaken(**options)) as training,
        pytest.raises(EnvironmentFailedError, match=r"raised ZeroDivisionError in step: the wind has no speed \(.*failing\.py"),
    ):
        training.iterate()


def test_a_killed_env_runner_is_started_again() -> None:
    with running(PPO | {"num_env_runners": 2, "num_cpus_per_env_runner": 0.5}) as training:
        training.iterate()
        group = training._algorithm.env_runner_group
        [victim, _] = group.foreach_env_runner(lambda runner: os.getpid(), local_env_runner=False)
        os.kill(victim, signal.SIGKILL)
        pids = [victim]
        while len(pids) < 2 or victim in pids:  # the other samples alone until it is back
            assert training.iterate()
            pids = group.foreach_env_runner(lambda runner: os.getpid(), local_env_runner=False)


def test_a_killed_learner_is_a_loss() -> None:
    with running(PPO | {"num_learners": 1, "num_cpus_per_learner": 0.5}) as training:
        training.iterate()
        [pid] = [found.get() for found in training._algorithm.learner_group.foreach_learner(lambda learner: os.getpid())]
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(RayError) as caught:
            training.iterate()
        assert outcome_of(caught.value) is Outcome.LOST
