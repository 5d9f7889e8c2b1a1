"""Environments are made or refused with one line, and tell their model where they have one."""

import numpy as np
import pytest

from cluster.errors import ConfigError
from learners.environments.finite import build_environment
from learners.environments.grid import grid_of
from learners.environments.markov_model import greedy_policy, markov_model
from learners.environments.table_evaluator import Evaluator
from learners.settings.environments.task import EpisodeEvaluationConfig, GymnasiumTaskConfig
from tests.learners.environments import failing

BLACKJACK = GymnasiumTaskConfig(env="Blackjack-v1")  # no model, and observations of three parts
LAKE = GymnasiumTaskConfig(env="FrozenLake-v1", options={"is_slippery": False})


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"env": "NoSuchLake-v1"}, "task.env=NoSuchLake-v1 cannot be made.*NoSuchLake"),
        ({"env": "FrozenLake-v1", "options": {"wind": 3}}, r"task.options=\{'wind': 3\} cannot be made.*wind"),
        ({"env": "FrozenLake-v1", "options": {"map_name": "9x9"}}, "cannot be made.*9x9"),
        ({"env": "no_such_module:Lake-v1"}, "cannot be made.*no_such_module"),
        ({"env": f"{failing.__name__}:NoSuchClass"}, "cannot be made.*NoSuchClass"),
        ({"env": "FrozenLake-v1", "wrappers": [{"name": "Shorter"}]}, "task.wrappers: Shorter does not fit.*has no Shorter"),
        (
            {"env": "FrozenLake-v1", "wrappers": [{"name": "ClipReward", "options": {"wind": 3}}]},
            r"ClipReward with options=\{'wind': 3\} does not fit task.env=FrozenLake-v1.*wind",
        ),
        ({"env": "CartPole-v1"}, "CartPole-v1: tables need finitely many states and actions.*Box"),
    ],
)
def test_what_cannot_be_made_is_one_line(task: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        build_environment(GymnasiumTaskConfig.model_validate(task))
    assert len(caught.value.problems) == 1
    assert "\n" not in str(caught.value)


def test_terminal_transitions_lead_nowhere() -> None:
    model = markov_model(build_environment(LAKE))
    assert model is not None
    goal, before_goal, right = 15, 14, 2
    assert model.transitions_SAS[before_goal, right].sum() == 0
    assert model.rewards_SA[before_goal, right] == 1
    assert model.transitions_SAS[goal].sum() == 0
    assert model.start_S.tolist() == [1.0, *[0.0] * 15]


def test_an_environment_without_a_table_has_no_model() -> None:
    assert markov_model(build_environment(BLACKJACK)) is None


def test_wrappers_stand_around_the_environment_and_take_its_model_away() -> None:
    """Place and speed of a car in 8 boxes each: then tables can learn it."""
    boxes = {"name": "DiscretizeObservation", "options": {"bins": 8}}
    car = build_environment(GymnasiumTaskConfig.model_validate({"env": "MountainCar-v0", "wrappers": [boxes]}))
    assert (car.num_states, car.num_actions) == (8**2, 3)
    cheaper = {"name": f"{failing.__name__}:Cheaper", "options": {"price": 0.25}}
    limit = {"name": "TimeLimit", "options": {"max_episode_steps": 6}}
    lake = build_environment(GymnasiumTaskConfig.model_validate(LAKE.model_dump() | {"wrappers": [cheaper, limit]}))
    lake.reset(0)
    steps = [lake.step(action) for action in (0, 0, 0, 0, 0, 0)]
    assert steps == [(0, -0.25, False, index == 5) for index in range(6)]
    assert markov_model(lake) is None
    assert grid_of(lake, np.zeros((16, 4)), np.zeros(16)) is None


def test_a_class_of_the_user_needs_no_id() -> None:
    task = GymnasiumTaskConfig(env=f"{failing.__name__}:Mistaken", options={"num_states": 3}, max_episode_steps=2)
    environment = build_environment(task)
    assert environment.num_states == 3
    environment.reset(0)
    assert [environment.step(1)[1:] for _ in range(2)] == [(1.0, False, False), (1.0, False, True)]


def test_observations_of_several_parts_are_counted() -> None:
    environment = build_environment(BLACKJACK)
    assert (environment.num_states, environment.num_actions) == (32 * 11 * 2, 2)
    assert environment.state_of((21, 10, 1)) == (21 * 11 + 10) * 2 + 1


def test_a_seed_makes_an_episode() -> None:
    environment = build_environment(BLACKJACK)
    first = [environment.reset(5), environment.step(1)]
    environment.reset(6)
    assert [environment.reset(5), environment.step(1)] == first


def evaluator(task: GymnasiumTaskConfig, **config: int) -> Evaluator:
    environment = build_environment(task)
    return Evaluator(
        task=task,
        environment=environment,
        model=markov_model(environment),
        optimal_return=None,
        config=EpisodeEvaluationConfig(**config),
        gamma=0.9,
        seed=0,
    )


def test_a_policy_is_evaluated_exactly_where_there_is_a_model() -> None:
    values_SA = np.zeros((16, 4))
    for state, action in {0: 1, 4: 1, 8: 2, 9: 1, 13: 2, 14: 2}.items():  # down, down, right, down, right, right
        values_SA[state, action] = 1.0
    found = evaluator(LAKE).evaluate(greedy_policy(values_SA), np.zeros(16))
    assert found.return_mean == pytest.approx(0.9**5)
    assert (found.return_std, found.num_episodes) == (None, 0)
    assert found.episode is not None
    assert (found.episode.num_steps, found.episode.total, found.episode.is_cut) == (6, 1.0, False)
    assert len(found.episode.frames) == 7


def test_else_by_episodes_and_the_same_ones_each_time() -> None:
    stick = greedy_policy(np.tile([1.0, 0.0], (704, 1)))
    found = evaluator(BLACKJACK, num_episodes=50).evaluate(stick, np.zeros(704))
    assert found == evaluator(BLACKJACK, num_episodes=50).evaluate(stick, np.zeros(704))
    assert found.num_episodes == 50
    assert -1 <= found.return_mean <= 1
    assert found.return_std is not None
    assert found.return_std > 0
    assert found.grid is None


def test_an_episode_that_never_ends_is_cut() -> None:
    found = evaluator(GymnasiumTaskConfig(env="CliffWalking-v1")).evaluate(greedy_policy(np.zeros((48, 4))), np.zeros(48))
    assert found.return_mean == pytest.approx(-10.0)  # up, for ever
    assert found.episode is not None
    assert (found.episode.is_cut, found.episode.num_steps, len(found.episode.frames)) == (True, 200, 40)


def test_maps_have_their_own_order_of_actions() -> None:
    lake, cliff = (build_environment(GymnasiumTaskConfig(env=env)) for env in ("FrozenLake-v1", "CliffWalking-v1"))
    second_SA = {size: greedy_policy(np.tile([0.0, 1.0, 0.0, 0.0], (size, 1))) for size in (16, 48)}
    on_lake, on_cliff = grid_of(lake, second_SA[16], np.zeros(16)), grid_of(cliff, second_SA[48], np.zeros(48))
    assert on_lake is not None
    assert on_cliff is not None
    assert on_lake.arrows[0] == ("down",) * 4
    assert on_lake.cells[1] == ("F", "H", "F", "H")
    assert on_lake.arrows[1] == ("down", "", "down", "")
    assert on_cliff.arrows[2] == ("right",) * 12
    assert on_cliff.arrows[3] == ("right", *[""] * 11)
    assert grid_of(build_environment(GymnasiumTaskConfig(env="Taxi-v3")), np.zeros((500, 6)), np.zeros(500)) is None
