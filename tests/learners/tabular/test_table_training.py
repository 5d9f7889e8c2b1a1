"""Tables reach the optimum, a restored one goes on bit by bit, and SARSA and Q-learning differ beside a cliff."""

from typing import Any

import numpy as np
import pytest

from learners.environments.finite import build_environment
from learners.environments.markov_model import MarkovModel, markov_model
from learners.settings.environments.tabular import (
    EpisodicLearnerConfig,
    MonteCarloLearnerConfig,
    PlanningLearnerConfig,
    TabularReinforceLearnerConfig,
    TemporalDifferenceLearnerConfig,
)
from learners.settings.environments.task import GymnasiumTaskConfig
from learners.tabular.planning import optimal_return, plan
from learners.tabular.training import TableTraining

GAMMA = 0.99
LAKE, CLIFF, TAXI = "FrozenLake-v1", "CliffWalking-v1", "Taxi-v3"
START, GOAL = 36, 47  # on the cliff's map of 4 x 12


def model_of(env: str) -> MarkovModel:
    model = markov_model(build_environment(GymnasiumTaskConfig(env=env)))
    assert model is not None
    return model


def trained(env: str, config: EpisodicLearnerConfig, *, seed: int = 0, num_episodes: int | None = None) -> TableTraining:
    training = TableTraining(build_environment(GymnasiumTaskConfig(env=env)), config, seed=seed)
    for _ in range(num_episodes or config.num_episodes):
        training.run_episode()
    return training


@pytest.mark.parametrize("env", [LAKE, CLIFF, TAXI])
def test_policy_iteration_equals_value_iteration(env: str) -> None:
    model = model_of(env)
    *_, by_values = plan(model, PlanningLearnerConfig(algorithm="value_iteration", gamma=GAMMA, tolerance=1e-13))
    *_, by_policies = plan(model, PlanningLearnerConfig(algorithm="policy_iteration", gamma=GAMMA))
    assert np.abs(by_values.values_S - by_policies.values_S).max() < 1e-10
    exact = model.expected_return(by_values.policy_SA, gamma=GAMMA)
    assert exact == pytest.approx(optimal_return(model, gamma=GAMMA), abs=1e-10)


def test_the_known_optimum_of_the_cliff() -> None:
    best = -sum(GAMMA**step for step in range(13))  # the shortest path has 13 steps of -1
    assert optimal_return(model_of(CLIFF), gamma=GAMMA) == pytest.approx(best, abs=1e-10)


TO_THE_OPTIMUM: dict[tuple[str, str], dict[str, Any]] = {  # exploration decays; where all rewards are costs, zeros are optimistic
    (CLIFF, "q_learning"): {"num_episodes": 700, "epsilon": {"start": 0.1, "end": 0.0, "over_num_episodes": 30}},
    (CLIFF, "sarsa"): {"num_episodes": 700, "epsilon": {"start": 0.1, "end": 0.0, "over_num_episodes": 30}},
    (LAKE, "q_learning"): {
        "num_episodes": 4000,
        "epsilon": {"start": 1.0, "end": 0.1, "over_num_episodes": 2000},
        "step_size": {"start": 0.2, "end": 0.005},
    },
    (LAKE, "sarsa"): {
        "num_episodes": 6000,
        "epsilon": {"start": 1.0, "end": 0.0, "over_num_episodes": 5500},
        "step_size": {"start": 0.2, "end": 0.005},
    },
    (TAXI, "q_learning"): {
        "num_episodes": 3000,
        "epsilon": {"start": 0.3, "end": 0.0, "over_num_episodes": 2700},
        "step_size": {"start": 0.8},
    },
    (TAXI, "sarsa"): {
        "num_episodes": 4000,
        "epsilon": {"start": 0.05, "end": 0.0, "over_num_episodes": 2000},
        "step_size": {"start": 0.2},
    },
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("env", "algorithm"), TO_THE_OPTIMUM)
def test_decaying_exploration_reaches_the_optimum(env: str, algorithm: Any, seed: int) -> None:
    config = TemporalDifferenceLearnerConfig(algorithm=algorithm, gamma=GAMMA, **TO_THE_OPTIMUM[env, algorithm])
    model = model_of(env)
    found = model.expected_return(trained(env, config, seed=seed).agent.policy(), gamma=GAMMA)
    best = optimal_return(model, gamma=GAMMA)
    assert (found / best if best > 0 else best / found) >= 0.97


def path_on_the_cliff(algorithm: Any, seed: int) -> list[int]:
    """States that the greedy policy passes, after learning with a constant epsilon of 0.1."""
    config = TemporalDifferenceLearnerConfig(
        algorithm=algorithm, num_episodes=600, epsilon={"start": 0.1}, step_size={"start": 0.2}
    )
    policy_SA, model = trained(CLIFF, config, seed=seed).agent.policy(), model_of(CLIFF)
    path = [START]
    while path[-1] != GOAL and len(path) < 50:
        following_S = model.transitions_SAS[path[-1], policy_SA[path[-1]].argmax()]
        path.append(int(following_S.argmax()) if following_S.any() else GOAL)
    return path


@pytest.mark.parametrize("seed", range(3))
def test_beside_the_cliff_sarsa_is_safe_and_q_learning_short(seed: int) -> None:
    short, safe = path_on_the_cliff("q_learning", seed), path_on_the_cliff("sarsa", seed)
    assert short == [START, *range(24, 36), GOAL]  # along the edge
    assert safe[-1] == GOAL
    assert len(safe) > len(short)
    assert set(safe) & set(range(25, 35)) == set()  # never beside the cliff


METHODS: list[EpisodicLearnerConfig] = [
    MonteCarloLearnerConfig(algorithm="monte_carlo", num_episodes=40),
    TemporalDifferenceLearnerConfig(algorithm="q_learning", num_episodes=40),
    TemporalDifferenceLearnerConfig(algorithm="sarsa", num_episodes=40),
    TemporalDifferenceLearnerConfig(algorithm="expected_sarsa", num_episodes=40),
    TabularReinforceLearnerConfig(algorithm="tabular_reinforce", num_episodes=40),
]


@pytest.mark.parametrize("config", METHODS, ids=lambda config: config.algorithm)
def test_a_restored_table_goes_on_bit_by_bit(config: EpisodicLearnerConfig) -> None:
    whole, first = trained(TAXI, config), trained(TAXI, config, num_episodes=23)
    rest = TableTraining(build_environment(GymnasiumTaskConfig(env=TAXI)), config, seed=0)
    rest.restore(first.state(), num_done=23)
    while rest.num_done < config.num_episodes:
        rest.run_episode()
    assert whole.state().keys() == rest.state().keys()
    for name, array in whole.state().items():
        assert array.tobytes() == rest.state()[name].tobytes(), name
    assert whole.report() == rest.report()
    assert all(table.any() for table in whole.agent.tables.values())


def test_another_seed_learns_something_else() -> None:
    config = METHODS[0]
    assert not np.array_equal(
        trained(TAXI, config, num_episodes=2).state()["action_values"],
        trained(TAXI, config, num_episodes=2, seed=1).state()["action_values"],
    )
