"""Reward functions against numbers worked out by hand."""

from typing import get_args

import pytest

from actors.config import BuiltInFunctionScorerConfig
from actors.rewards import REWARD_FUNCTIONS
from cluster.errors import DataError
from cluster.messages import Message
from cluster.types import Prompt, Task, Trajectory
from tests.records import completion


def trajectory(text: str, *, reference: str = "", num_tokens: int = 3) -> Trajectory:
    task = Task(task_id="t/1", messages=(Message(role="user", content="?"),), reference=reference)
    prompt = Prompt(task=task, text="?", token_ids=(5,))
    return Trajectory(prompt=prompt, sample_index=0, completion=completion(*[7] * num_tokens, text=text))


def test_every_function_of_the_settings_exists() -> None:
    assert set(REWARD_FUNCTIONS) == set(get_args(BuiltInFunctionScorerConfig.model_fields["function"].annotation))


def test_length_counts_tokens_not_words() -> None:
    assert REWARD_FUNCTIONS["length"](trajectory("one two", num_tokens=9)) == 9.0


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("good", 0.0),
        ("a fine film", 0.0),
        ("very very very", 0.5),  # two bigrams, one distinct
        ("So good so good so good", 0.6),  # five bigrams: so-good, good-so
    ],
)
def test_repetition_is_the_share_of_repeated_bigrams(text: str, share: float) -> None:
    assert REWARD_FUNCTIONS["repetition"](trajectory(text)) == pytest.approx(share)


def test_vader_orders_good_neutral_bad() -> None:
    good, neutral, bad = (REWARD_FUNCTIONS["vader"](trajectory(text)) for text in ("a great film", "a film", "a terrible film"))
    assert -1 <= bad < neutral == 0 < good <= 1


@pytest.mark.parametrize(
    ("text", "score"), [("Paris", 1.0), (" paris.\n", 1.0), ("New  York", 0.0), ("Paris, France", 0.0), ("", 0.0)]
)
def test_answer_match_ignores_case_spacing_and_full_stop(text: str, score: float) -> None:
    assert REWARD_FUNCTIONS["answer_match"](trajectory(text, reference="Paris")) == score


def test_answer_match_without_reference_is_an_error() -> None:
    with pytest.raises(DataError, match="'t/1' has no reference"):
        REWARD_FUNCTIONS["answer_match"](trajectory("Paris"))


@pytest.mark.parametrize(
    ("text", "first", "final"),
    [
        ("7", 1.0, 1.0),
        (" 7\n8 + 2 = 10", 1.0, 0.0),  # a base model goes on with the next problem
        ("3 + 4 = 7", 0.0, 1.0),
        ("It is 7.", 1.0, 1.0),
        ("7.0", 1.0, 1.0),
        ("$7.00!", 1.0, 1.0),
        ("10-7", 0.0, 1.0),  # a minus after a digit is no sign
        ("-7", 0.0, 0.0),
        ("x=-7", 0.0, 0.0),
        ("77", 0.0, 0.0),
        ("7.5", 0.0, 0.0),
        ("seven", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_first_and_final_number(text: str, first: float, final: float) -> None:
    assert REWARD_FUNCTIONS["first_number"](trajectory(text, reference="7")) == first
    assert REWARD_FUNCTIONS["final_number"](trajectory(text, reference="7")) == final


@pytest.mark.parametrize(
    ("text", "score"),
    [("1,200", 1.0), ("1200.0", 1.0), ("It costs $1,200,000 in 1,200 parts", 1.0), ("1,2000", 0.0), ("1, 200", 0.0)],
)
def test_commas_group_thousands_only(text: str, score: float) -> None:
    assert REWARD_FUNCTIONS["final_number"](trajectory(text, reference="1200")) == score


def test_numbers_are_compared_exactly() -> None:
    assert REWARD_FUNCTIONS["final_number"](trajectory("0.30000000000000001", reference="0.3")) == 0.0
    assert REWARD_FUNCTIONS["final_number"](trajectory("9007199254740993", reference="9007199254740992")) == 0.0


@pytest.mark.parametrize("reference", ["", "seven", "1/2", "7 apples"])
def test_a_reference_that_is_no_number_is_an_error(reference: str) -> None:
    with pytest.raises(DataError, match="task 't/1' has the reference .* which is not a number"):
        REWARD_FUNCTIONS["final_number"](trajectory("7", reference=reference))
