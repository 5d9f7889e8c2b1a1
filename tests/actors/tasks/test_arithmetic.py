"""Arithmetic problems: values by hand, disjoint sets, the same ones every time."""

from typing import Any

import pytest

from actors.config import ArithmeticTaskConfig
from actors.tasks import build_task_sets
from actors.tasks.arithmetic import problem, value


def config(**changes: Any) -> ArithmeticTaskConfig:
    return ArithmeticTaskConfig.model_validate({"max_operand": 9, "num_train": 60, "num_held_out": 20, **changes})


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("3 + 4", 7),
        ("3 - 4", -1),
        ("3 * 4", 12),
        ("2 + 3 * 4", 14),  # products first
        ("2 * 3 + 4", 10),
        ("2 - 3 * 4", -10),
        ("2 * 3 - 4 * 5", -14),
        ("9 - 3 - 2", 4),  # from the left
        ("9 - 3 + 2", 8),
        ("0 - 0 * 7", 0),
        ("2 * 3 * 4 - 5", 19),
    ],
)
def test_values(expression: str, result: int) -> None:
    assert value(expression) == result


def test_every_index_is_a_different_problem() -> None:
    settings = config(operations=["+", "-"], min_operand=2, max_operand=4, num_terms=3, num_train=1, num_held_out=1)
    assert settings.num_problems == 3**3 * 2**2
    problems = {problem(index, settings) for index in range(settings.num_problems)}
    assert len(problems) == settings.num_problems
    assert {number for each in problems for number in each.split()[::2]} == {"2", "3", "4"}


def test_a_plain_prompt_is_the_problem_to_be_continued() -> None:
    train, held_out = build_task_sets(config(num_train=80, num_held_out=20))
    assert (len(train), len(held_out), train.name, held_out.name) == (80, 20, "arithmetic/train", "arithmetic/held_out")
    task = next(task for task in (*train, *held_out) if task.task_id == "arithmetic/3+4")  # all 100 problems are drawn
    assert [(message.role, message.content) for message in task.messages] == [("user", "3 + 4 =")]
    assert task.reference == "7"


def test_no_problem_is_seen_twice_not_even_as_an_example() -> None:
    train, held_out = build_task_sets(config(num_examples=20))
    last_lines = [task.messages[0].content.splitlines()[-1] for task in (*train, *held_out)]
    examples = train[0].messages[0].content.splitlines()[:-1]
    seen = [*last_lines, *(f"{example.rpartition(' = ')[0]} =" for example in examples)]
    assert len(set(seen)) == len(seen) == 100


def test_examples_are_solved_and_the_same_in_every_prompt() -> None:
    train, held_out = build_task_sets(config(num_examples=3))
    heads = {tuple(task.messages[0].content.splitlines()[:-1]) for task in (*train, *held_out)}
    assert len(heads) == 1
    for example in heads.pop():
        expression, _, result = example.rpartition(" = ")
        assert value(expression) == int(result)


def test_a_chat_prompt_says_what_to_do() -> None:
    train, _ = build_task_sets(config(prompt_format="chat"))
    assert train[0].messages[0].content.startswith("Complete the last line with the result.")
    assert train[0].messages[0].content.endswith(" =")


def test_the_seed_decides() -> None:
    assert build_task_sets(config(seed=1)) == build_task_sets(config(seed=1))
    assert build_task_sets(config(seed=1)) != build_task_sets(config(seed=2))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"num_train": 81}, "num_train . num_held_out . num_examples = 101, but there are only 100 different problems"),
        ({"num_train": 80, "num_examples": 1}, "= 101, but there are only 100"),
        ({"min_operand": 10}, "min_operand=10 is more than max_operand=9"),
        ({"operations": ["+", "+"]}, "names one twice"),
        ({"operations": ["/"]}, "Input should be"),
        ({"operations": []}, "at least 1 item"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        config(**changes)
