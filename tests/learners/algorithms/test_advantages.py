"""Rewards per token, advantages and whitening, by hand and by property."""

import torch
from torch import tensor
from torch.testing import assert_close

from learners.algorithms.advantages import gae
from learners.algorithms.masking import masked_mean, whiten
from learners.algorithms.token_rewards import token_rewards

NONE = tensor([0.0])
NAN = float("nan")


def test_gae_matches_hand_computation() -> None:
    advantages, returns = gae(
        tensor([[0.0, 0.0, 1.0]]), tensor([[0.5, 0.6, 0.7]]), NONE, torch.ones(1, 3, dtype=torch.bool), gamma=1.0, gae_lambda=0.95
    )
    # surprises .1, .1, .3; A3 = .3; A2 = .1 + .95 * .3; A1 = .1 + .95 * .385
    assert_close(advantages, tensor([[0.46575, 0.385, 0.3]]))
    assert_close(returns, tensor([[0.96575, 0.985, 1.0]]))


def test_gae_steps_over_masked_gaps_and_padding_whatever_they_hold() -> None:
    mask = tensor([[True, True, False, False, True, True, False]])
    advantages, returns = gae(
        tensor([[0.0, 0.0, NAN, NAN, 0.0, 1.0, NAN]]),
        tensor([[0.5, 0.6, NAN, 0.3, 0.7, 0.9, 0.8]]),
        NONE,
        mask,
        gamma=1.0,
        gae_lambda=0.95,
    )
    # surprises .1, .1, .2, .1 of the four valid tokens; .1; .2 + .095; .1 + .95 * .295; .1 + .95 * .38025
    assert_close(advantages, tensor([[0.4612375, 0.38025, 0.0, 0.0, 0.295, 0.1, 0.0]]))
    assert returns[0, 2] == returns[0, 6] == 0


def test_gae_of_a_cut_completion_continues_with_the_critic() -> None:
    advantages, _ = gae(
        tensor([[0.0, 1.0]]), tensor([[0.5, 0.6]]), tensor([2.0]), torch.ones(1, 2, dtype=torch.bool), gamma=0.5, gae_lambda=0.5
    )
    # surprise 2: 1 + .5 * 2 - .6 = 1.4; surprise 1: 0 + .5 * .6 - .5 = -.2; A1 = -.2 + .25 * 1.4
    assert_close(advantages, tensor([[0.15, 1.4]]))


def test_lambda_one_gamma_one_gives_monte_carlo_returns() -> None:
    torch.manual_seed(0)
    rewards, values = torch.randn(4, 9), torch.randn(4, 9)
    _, returns = gae(rewards, values, torch.zeros(4), torch.ones(4, 9, dtype=torch.bool), gamma=1.0, gae_lambda=1.0)
    assert_close(returns, rewards.flip(1).cumsum(1).flip(1))


def test_gae_with_lambda_zero_is_the_one_step_surprise() -> None:
    advantages, _ = gae(
        tensor([[1.0, 2.0]]), tensor([[3.0, 5.0]]), NONE, torch.ones(1, 2, dtype=torch.bool), gamma=1.0, gae_lambda=0.0
    )
    assert_close(advantages, tensor([[3.0, -3.0]]))  # 1 + 5 - 3; 2 + 0 - 5


def test_token_rewards_put_the_score_on_the_last_valid_token() -> None:
    rewards = token_rewards(
        tensor([[-1.0, -2.0, NAN], [-1.0, -1.0, -1.0]]),
        tensor([[-1.5, -1.0, NAN], [-1.0, -1.0, -3.0]]),
        tensor([10.0, 20.0]),
        tensor([[True, True, False], [True, True, True]]),
        kl_coef=0.1,
    )
    # -.1 * .5; -.1 * -1 + 10; masked | 0; 0; -.1 * 2 + 20
    assert_close(rewards, tensor([[-0.05, 10.1, 0.0], [0.0, 0.0, 19.8]]))


def test_whitening_uses_population_variance_and_ignores_what_is_masked() -> None:
    whitened = whiten(tensor([[1.0, 3.0, NAN]]), tensor([[True, True, False]]), count=2)
    assert_close(whitened, tensor([[-1.0, 1.0, 0.0]]))  # mean 2, variance ((-1)^2 + 1^2) / 2 = 1


def test_whitening_equal_values_gives_zero() -> None:
    assert_close(whiten(torch.full((2, 3), 7.0), torch.ones(2, 3, dtype=torch.bool), count=6), torch.zeros(2, 3))


def test_shares_of_a_mean_add_up() -> None:
    values, mask = torch.arange(6.0).view(2, 3), tensor([[True, True, False], [False, True, True]])
    parts = [masked_mean(values[row : row + 1], mask[row : row + 1], count=4) for row in range(2)]
    assert_close(parts[0] + parts[1], tensor(2.5))  # (0 + 1 + 4 + 5) / 4
