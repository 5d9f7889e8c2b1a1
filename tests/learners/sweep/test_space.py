"""What a sweep varies: lists and distributions as they are typed, and the points that follow."""

import math

import pytest

from cluster.errors import ConfigError
from learners.sweep.space import Choice, Range, overrides_of, parse_grid, parse_sample, parse_space


def test_values_of_a_grid_are_texts_and_brackets_hold_theirs_together() -> None:
    assert parse_grid(["a.b=1, 2e-5,on", "c=[1,2],{x: 1, y: 2}"]) == {
        "a.b": ("1", "2e-5", "on"),
        "c": ("[1,2]", "{x: 1, y: 2}"),
    }


@pytest.mark.parametrize("text", ["a.b", "=1,2", "a.b="])
def test_a_grid_needs_a_setting_and_values(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a setting and its values"):
        parse_grid([text])


def test_a_setting_is_given_once() -> None:
    with pytest.raises(ConfigError, match="a: given twice"):
        parse_grid(["a=1", "a=2"])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("uniform(0,1)", Range(low=0, high=1, is_log=False, is_whole=False)),
        ("loguniform(1e-6, 1e-4)", Range(low=1e-6, high=1e-4, is_log=True, is_whole=False)),
        ("randint(1,8)", Range(low=1, high=8, is_log=False, is_whole=True)),
        ("lograndint(1,64)", Range(low=1, high=64, is_log=True, is_whole=True)),
        ("choice(ppo,grpo)", Choice(values=("ppo", "grpo"))),
    ],
)
def test_each_distribution_is_read(text: str, found: Range | Choice) -> None:
    assert parse_space({}, parse_sample([f"x={text}"])).sample == {"x": found}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("loguniform(1e-6)", "needs two numbers"),
        ("randint(1,2.5)", "needs two whole numbers"),
        ("uniform(a,b)", "needs two numbers"),
        ("uniform(2,1)", "the first number must be below the second"),
        ("uniform(0,inf)", "the first number must be below the second"),
        ("loguniform(0,1)", "begins above 0"),
        ("normal(0,1)", r"not a distribution; write uniform\(LOW,HIGH\)"),
        ("1e-5", "not a distribution"),
        ("choice(a,,b)", "none of them empty"),
    ],
)
def test_a_distribution_that_cannot_be_read_is_named(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse_space({}, {"x": text})


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_space({"g": ("1", "1"), "h": ("1", "")}, {"x": "normal(0,1)", "y": "uniform(1,0)"})
    assert len(caught.value.problems) == 4


def test_draws_stay_inside_and_are_short() -> None:
    space = parse_space({}, {"rate": "loguniform(1.23456e-6,1e-4)", "layers": "randint(1,3)", "width": "lograndint(1,64)"})
    points = space.points(num_samples=300, seed=0)
    rates = [float(point["rate"]) for point in points]
    assert min(rates) >= 1.23456e-6
    assert max(rates) <= 1e-4
    assert all(len(point["rate"]) <= len("1.234e-05") for point in points)
    assert {point["layers"] for point in points} == {"1", "2", "3"}  # both ends belong to it
    assert {int(point["width"]) for point in points} <= set(range(1, 65))
    middle = sum(rate < math.sqrt(1.23456e-6 * 1e-4) for rate in rates)
    assert 110 <= middle <= 190  # half of 300 below the geometric mean; 4.6 standard deviations of 8.7 to either side


def test_the_end_of_a_range_is_not_rounded_beyond() -> None:
    assert Range(low=1.00004, high=2.00006, is_log=False, is_whole=False).extremes() == ["1.00004", "2.0"]


def test_a_grid_is_every_combination_for_each_draw_and_more_draws_only_add_points() -> None:
    space = parse_space({"a": ("1", "2"), "b": ("x", "y", "z")}, {"rate": "uniform(0,1)"})
    one, two = space.points(num_samples=1, seed=3), space.points(num_samples=2, seed=3)
    assert [(point["a"], point["b"]) for point in one] == [(a, b) for a in "12" for b in "xyz"]
    assert two[:6] == one
    assert len({point["rate"] for point in two}) == 12
    assert space.points(num_samples=1, seed=4) != one


def test_the_outermost_points_move_one_setting_at_a_time() -> None:
    space = parse_space({"a": ("1", "2")}, {"n": "randint(3,9)"})
    assert space.outermost() == [{"a": "1", "n": "3"}, {"a": "2", "n": "3"}, {"a": "1", "n": "3"}, {"a": "1", "n": "9"}]


def test_a_point_is_overrides() -> None:
    assert overrides_of({"a.b": "1", "c": "[1,2]"}) == ["a.b=1", "c=[1,2]"]
