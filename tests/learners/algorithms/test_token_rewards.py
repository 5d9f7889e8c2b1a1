"""Rewards per token, shaping, whitening and KL control, by hand."""

import math
from typing import Any

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from learners.algorithms.kl import k3
from learners.algorithms.kl_control import adaptive_kl_coef
from learners.algorithms.masking import masked_mean, on_tokens, row_mean, row_sum, whiten
from learners.algorithms.reward_shaping import (
    RunningMoments,
    length_penalty,
    missing_eos_penalty,
    normalised,
    overlong_penalty,
)
from learners.algorithms.token_rewards import token_rewards

NAN = float("nan")


def test_token_rewards_put_scores_where_they_belong() -> None:
    rewards = token_rewards(
        tensor([[-1.0, -2.0, NAN], [-1.0, -1.0, -1.0]]),
        tensor([[-1.5, -1.0, NAN], [-1.0, -1.0, -3.0]]),
        tensor([10.0, 20.0]),
        tensor([[0.0, 0.0, NAN], [3.0, 0.0, 0.0]]),
        tensor([[True, True, False], [True, True, True]]),
        kl_coef=0.1,
    )
    # -.1 * .5; -.1 * -1 + 10; masked | 0 + the step's 3; 0; -.1 * 2 + 20
    assert_close(rewards, tensor([[-0.05, 10.1, 0.0], [3.0, 0.0, 19.8]]))


def test_whitening_uses_population_variance_and_ignores_what_is_masked() -> None:
    whitened = whiten(tensor([[1.0, 3.0, NAN]]), tensor([[True, True, False]]), count=2)
    assert_close(whitened, tensor([[-1.0, 1.0, 0.0]]))  # mean 2, variance ((-1)^2 + 1^2) / 2 = 1


def test_whitening_equal_values_gives_zero() -> None:
    assert_close(whiten(torch.full((2, 3), 7.0), torch.ones(2, 3, dtype=torch.bool), count=6), torch.zeros(2, 3))


def test_shares_of_a_mean_add_up() -> None:
    values, mask = torch.arange(6.0).view(2, 3), tensor([[True, True, False], [False, True, True]])
    parts = [masked_mean(values[row : row + 1], mask[row : row + 1], count=4) for row in range(2)]
    assert_close(parts[0] + parts[1], tensor(2.5))  # (0 + 1 + 4 + 5) / 4


def test_whitening_may_keep_the_mean() -> None:
    whitened = whiten(tensor([[1.0, 5.0, NAN]]), tensor([[True, True, False]]), count=2, keep_mean=True)
    assert_close(whitened, tensor([[2.0, 4.0, 0.0]]))  # mean 3, deviation 2: 3 - 1; 3 + 1


def test_rows_are_reduced_inside_the_mask() -> None:
    values, mask = tensor([[1.0, NAN, 3.0], [NAN, NAN, NAN]]), tensor([[True, False, True], [False] * 3])
    assert_close(row_mean(values, mask), tensor([2.0, 0.0]))
    assert_close(row_sum(values, mask), tensor([4.0, 0.0]))
    assert_close(on_tokens(tensor([5.0, NAN]), mask), tensor([[5.0, 0.0, 5.0], [0.0, 0.0, 0.0]]))


def test_running_moments_are_those_of_everything_seen() -> None:
    moments = RunningMoments()
    assert moments.std == 1
    for part in (tensor([1.0, 2.0]), tensor([6.0]), tensor([7.0, 9.0])):
        moments = moments.updated(part)
    # 1, 2, 6, 7, 9: mean 5, squares 16 + 9 + 1 + 4 + 16 = 46
    assert (moments.count, moments.mean) == (5, 5.0)
    assert moments.std == pytest.approx(math.sqrt(46 / 5))
    assert_close(normalised(tensor([5.0, 5.0 + moments.std]), moments), tensor([0.0, 1.0]))


def test_equal_scores_are_not_blown_up() -> None:
    moments = RunningMoments().updated(tensor([3.0, 3.0]))
    assert normalised(tensor([3.0, 3.0]), moments).tolist() == [0.0, 0.0]


def test_overlong_penalty_matches_hand_computation() -> None:
    # limit 100, buffer 20: nothing up to 80, then linear, -2 at the limit
    penalties = overlong_penalty(tensor([10, 80, 85, 100]), max_tokens=100, buffer_tokens=20, factor=2.0)
    assert_close(penalties, tensor([0.0, 0.0, -0.5, -2.0]))


def test_other_penalties_match_hand_computation() -> None:
    assert_close(length_penalty(tensor([0, 3]), coef=0.5), tensor([0.0, -1.5]))
    assert_close(missing_eos_penalty(tensor([True, False]), penalty=2.0), tensor([-2.0, 0.0]))


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.0, 0.2),  # on target
        (6.6, 0.2 * (1 + 0.1 * 64 / 10_000)),  # 10 % above
        (60.0, 0.2 * (1 + 0.2 * 64 / 10_000)),  # far above: limited to 20 %
        (0.0, 0.2 * (1 - 0.2 * 64 / 10_000)),
    ],
)
def test_adaptive_kl_matches_hand_computation(kl: float, expected: float) -> None:
    coef = adaptive_kl_coef(0.2, kl_nats_per_completion=kl, target_kl_nats_per_completion=6.0, num_completions=64, horizon=10_000)
    assert coef == pytest.approx(expected)


def test_adaptive_kl_turns_with_the_kl_summed_over_tokens_not_with_their_mean() -> None:
    # 0.3 nats a token over 40 tokens are 12 nats a completion, twice the target: the coefficient rises.
    settings: dict[str, Any] = {"target_kl_nats_per_completion": 6.0, "num_completions": 100, "horizon": 1000}
    assert adaptive_kl_coef(0.1, kl_nats_per_completion=0.3 * 40, **settings) > 0.1
    assert adaptive_kl_coef(0.1, kl_nats_per_completion=0.3, **settings) < 0.1


def test_k3_is_limited_only_where_it_would_overflow() -> None:
    logprobs, reference = tensor([0.0, -29.0]), tensor([-29.0, 0.0])
    # exp(-29) - 1 + 29; exp(20) - 1 - 20, the limit
    assert_close(k3(logprobs, reference), tensor([28.0, math.exp(20) - 21]))
