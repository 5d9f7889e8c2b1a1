"""Reward functions against numbers worked out by hand."""

from typing import get_args

import pytest

from actors.config import RewardFunctionScorerConfig
from actors.rewards import REWARD_FUNCTIONS
from cluster.errors import DataError
from cluster.types import Completion, Message, Prompt, Task, Trajectory


def trajectory(text: str, *, reference: str = "", num_tokens: int = 3) -> Trajectory:
    task = Task(task_id="t/1", messages=(Message(role="user", content="?"),), reference=reference)
    completion = Completion(
        token_ids=(7,) * num_tokens, rollout_logprobs=(-1.0,) * num_tokens, text=text, finish_reason="stop", policy_version=0
    )
    return Trajectory(prompt=Prompt(task=task, text="?", token_ids=(5,)), sample_index=0, completion=completion)


def test_every_function_of_the_settings_exists() -> None:
    assert set(REWARD_FUNCTIONS) == set(get_args(RewardFunctionScorerConfig.model_fields["function"].annotation))


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
