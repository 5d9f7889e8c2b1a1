"""Each method's update, computed by hand on a chain of two states: gamma 0.9, step size 0.5."""

import numpy as np
import pytest

from learners.environments.markov_model import greedy_policy, markov_model
from learners.settings.environments.tabular import PlanningLearnerConfig
from learners.tabular.episodes import Transition, Turn, play_episode
from learners.tabular.expected_sarsa import ExpectedSarsa
from learners.tabular.monte_carlo import MonteCarlo
from learners.tabular.planning import plan
from learners.tabular.policy_iteration import improved
from learners.tabular.q_learning import QLearning
from learners.tabular.reinforce import Reinforce
from learners.tabular.sarsa import Sarsa
from learners.tabular.value_iteration import sweep
from tests.learners.tabular.chain import GO_ON, STAY, chain, moved, turn

GAMMA = 0.9


def test_q_learning_moves_towards_the_best_next_action() -> None:
    agent = QLearning(2, 2, gamma=GAMMA)
    agent.values_SA[1] = [4.0, 2.0]
    agent.begin(0, turn())
    assert agent.learn(moved(0, GO_ON)) == STAY
    assert agent.values_SA[0, GO_ON] == pytest.approx(2.3)  # 0.5 (1 + 0.9 * 4)
    agent.learn(moved(1, GO_ON))
    assert agent.values_SA[1, GO_ON] == pytest.approx(6.0)  # 2 + 0.5 (10 - 2): nothing follows the end


def test_sarsa_moves_towards_the_next_action_that_is_executed() -> None:
    agent = Sarsa(2, 2, gamma=GAMMA)
    agent.values_SA[1] = [4.0, 2.0]
    seen = set()
    for seed in range(20):
        agent.values_SA[0] = 0.0
        agent.begin(0, turn(epsilon=1.0, seed=seed))
        action = agent.learn(moved(0, GO_ON))
        assert agent.values_SA[0, GO_ON] == pytest.approx({STAY: 2.3, GO_ON: 1.4}[action])  # 0.5 (1 + 0.9 * 4), with 2
        seen.add(action)
    assert seen == {STAY, GO_ON}


def test_an_episode_executes_the_action_that_sarsa_has_learned_with() -> None:
    chosen: list[int] = []
    executed: list[int] = []

    class Recorded(Sarsa):
        def begin(self, state: int, turn: Turn) -> int:
            chosen.append(super().begin(state, turn))
            return chosen[-1]

        def learn(self, transition: Transition) -> int:
            executed.append(transition.action)
            chosen.append(super().learn(transition))
            return chosen[-1]

    play_episode(chain(), Recorded(2, 2, gamma=GAMMA), turn(epsilon=0.5, seed=3), seed=0, gamma=GAMMA)
    assert len(executed) > 2
    assert executed == chosen[:-1]


def test_expected_sarsa_moves_towards_the_mean_of_the_policy() -> None:
    agent = ExpectedSarsa(2, 2, gamma=GAMMA)
    agent.values_SA[1] = [4.0, 2.0]
    agent.begin(0, turn(epsilon=0.4))
    agent.learn(moved(0, GO_ON))
    assert agent.values_SA[0, GO_ON] == pytest.approx(0.5 * (1 + 0.9 * 3.6))  # 0.6 * 4 + 0.4 * 3


@pytest.mark.parametrize("method", [QLearning, Sarsa, ExpectedSarsa])
def test_a_cut_episode_goes_on_in_its_target(method: type[QLearning | Sarsa | ExpectedSarsa]) -> None:
    agent = method(2, 2, gamma=GAMMA)
    agent.values_SA[1] = [4.0, 4.0]
    agent.begin(0, turn())
    agent.learn(moved(0, GO_ON, is_cut=True))
    assert agent.values_SA[0, GO_ON] == pytest.approx(2.3)


def test_monte_carlo_takes_the_mean_of_returns_after_first_visits() -> None:
    agent = MonteCarlo(2, 2, gamma=GAMMA)
    agent.begin(0, turn())
    for action in (STAY, STAY, GO_ON):
        agent.learn(moved(0, action))
    agent.learn(moved(1, GO_ON))
    first = -1 + 0.9 * (-1 + 0.9 * (1 + 0.9 * 10))  # not the second visit's, which is 8
    assert agent.values_SA == pytest.approx(np.array([[first, 10.0], [0.0, 10.0]]))
    agent.begin(0, turn())
    agent.learn(moved(0, GO_ON))
    agent.learn(moved(1, STAY))
    agent.learn(moved(1, GO_ON))
    assert agent.values_SA[0, GO_ON] == pytest.approx((10.0 + 1 + 0.9 * (-1 + 0.9 * 10)) / 2)
    assert agent.values_SA[1, GO_ON] == 10.0


def test_monte_carlo_goes_on_from_a_cut() -> None:
    agent = MonteCarlo(2, 2, gamma=GAMMA)
    agent.values_SA[1] = [4.0, 2.0]
    agent.begin(0, turn())
    agent.learn(moved(0, GO_ON, is_cut=True))
    assert agent.values_SA[0, GO_ON] == pytest.approx(1 + 0.9 * 4)


def test_reinforce_follows_the_gradient_against_its_baseline() -> None:
    agent = Reinforce(2, 2, gamma=GAMMA, value_step_size=0.5)
    agent.begin(0, turn(step_size=0.1))
    agent.learn(moved(0, GO_ON))
    agent.learn(moved(1, GO_ON))
    # From pi = 1/2: returns 10 and 10, baseline 0; state 1 counts 0.9.
    expected = np.array([[-0.5, 0.5], [-0.45, 0.45]])
    assert agent.tables["preferences"] == pytest.approx(expected)
    assert agent.tables["state_values"] == pytest.approx(np.array([5.0, 5.0]))
    assert agent.policy()[0, GO_ON] == pytest.approx(1 / (1 + np.exp(-1.0)))


def test_reinforce_goes_on_from_a_cut_with_its_baseline() -> None:
    agent = Reinforce(2, 2, gamma=GAMMA, value_step_size=0.5)
    agent.tables["state_values"][1] = 4.0
    agent.begin(0, turn(step_size=0.1))
    agent.learn(moved(0, GO_ON, is_cut=True))
    assert agent.tables["state_values"][0] == pytest.approx(0.5 * (1 + 0.9 * 4))


def test_a_sweep_backs_up_the_best_action() -> None:
    model = markov_model(chain())
    assert model is not None
    values_S, max_change = sweep(model, np.zeros(2), gamma=GAMMA)
    assert (values_S.tolist(), max_change) == ([1.0, 10.0], 10.0)
    values_S, max_change = sweep(model, values_S, gamma=GAMMA)
    assert (values_S.tolist(), max_change) == ([10.0, 10.0], 9.0)


def test_an_improvement_evaluates_exactly_and_counts_changes() -> None:
    model = markov_model(chain())
    assert model is not None
    policy_SA, values_S, num_changes = improved(model, greedy_policy(np.zeros((2, 2))), gamma=GAMMA)
    assert values_S == pytest.approx(np.array([-10.0, -10.0]))  # -1 / (1 - 0.9), for ever
    assert num_changes == 2
    assert policy_SA[:, GO_ON].tolist() == [1.0, 1.0]
    _, values_S, num_changes = improved(model, policy_SA, gamma=GAMMA)
    assert (values_S == pytest.approx(np.array([10.0, 10.0])), num_changes) == (True, 0)


def test_planning_ends_at_its_limit() -> None:
    model = markov_model(chain())
    assert model is not None
    sweeps = list(plan(model, PlanningLearnerConfig(algorithm="value_iteration", gamma=GAMMA, max_sweeps=2)))
    assert [found.is_last for found in sweeps] == [False, False]
    assert sweeps[-1].metrics["planning/start_value"] == 10.0


def test_an_episode_counts_what_it_gets() -> None:
    agent = QLearning(2, 2, gamma=GAMMA)
    agent.values_SA[:, GO_ON] = 1.0
    outcome = play_episode(chain(), agent, turn(), seed=0, gamma=GAMMA)
    assert (outcome.total, outcome.discounted, outcome.num_steps, outcome.is_cut) == (11.0, 1 + 0.9 * 10, 2, False)
