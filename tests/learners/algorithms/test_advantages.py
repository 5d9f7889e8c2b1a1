"""Advantages, by hand and by property."""

import math

import torch
from torch import tensor
from torch.testing import assert_close

from learners.algorithms.advantages.dr_grpo import dr_grpo
from learners.algorithms.advantages.gae import gae
from learners.algorithms.advantages.grpo import grpo
from learners.algorithms.advantages.reinforce import reward_to_go
from learners.algorithms.advantages.remax import remax
from learners.algorithms.advantages.rloo import rloo
from learners.algorithms.groups import group_mean, group_size, group_std, has_contrast

# Two groups: 0 of three trajectories, 1 of two.
GROUPS = tensor([0, 0, 0, 1, 1])
RETURNS = tensor([1.0, 0.0, 5.0, 2.0, 6.0])
NONE = tensor([0.0])
NAN = float("nan")


def test_gae_matches_hand_computation() -> None:
    advantages = gae(
        tensor([[0.0, 0.0, 1.0]]), tensor([[0.5, 0.6, 0.7]]), NONE, torch.ones(1, 3, dtype=torch.bool), gamma=1.0, gae_lambda=0.95
    )
    # surprises .1, .1, .3; A3 = .3; A2 = .1 + .95 * .3; A1 = .1 + .95 * .385
    assert_close(advantages, tensor([[0.46575, 0.385, 0.3]]))


def test_gae_steps_over_masked_gaps_and_padding_whatever_they_hold() -> None:
    mask = tensor([[True, True, False, False, True, True, False]])
    advantages = gae(
        tensor([[0.0, 0.0, NAN, NAN, 0.0, 1.0, NAN]]),
        tensor([[0.5, 0.6, NAN, 0.3, 0.7, 0.9, 0.8]]),
        NONE,
        mask,
        gamma=1.0,
        gae_lambda=0.95,
    )
    # surprises .1, .1, .2, .1 of the four valid tokens; .1; .2 + .095; .1 + .95 * .295; .1 + .95 * .38025
    assert_close(advantages, tensor([[0.4612375, 0.38025, 0.0, 0.0, 0.295, 0.1, 0.0]]))


def test_gae_of_a_cut_completion_continues_with_the_critic() -> None:
    advantages = gae(
        tensor([[0.0, 1.0]]), tensor([[0.5, 0.6]]), tensor([2.0]), torch.ones(1, 2, dtype=torch.bool), gamma=0.5, gae_lambda=0.5
    )
    # surprise 2: 1 + .5 * 2 - .6 = 1.4; surprise 1: 0 + .5 * .6 - .5 = -.2; A1 = -.2 + .25 * 1.4
    assert_close(advantages, tensor([[0.15, 1.4]]))


def test_lambda_one_gamma_one_gives_monte_carlo_returns() -> None:
    torch.manual_seed(0)
    rewards, values = torch.randn(4, 9), torch.randn(4, 9)
    advantages = gae(rewards, values, torch.zeros(4), torch.ones(4, 9, dtype=torch.bool), gamma=1.0, gae_lambda=1.0)
    assert_close(advantages + values, rewards.flip(1).cumsum(1).flip(1))


def test_gae_with_lambda_zero_is_the_one_step_surprise() -> None:
    advantages = gae(
        tensor([[1.0, 2.0]]), tensor([[3.0, 5.0]]), NONE, torch.ones(1, 2, dtype=torch.bool), gamma=1.0, gae_lambda=0.0
    )
    assert_close(advantages, tensor([[3.0, -3.0]]))  # 1 + 5 - 3; 2 + 0 - 5


def test_grpo_matches_hand_computation() -> None:
    # group 0: mean 2, squares 1 + 4 + 9 = 14, unbiased deviation sqrt(7); group 1: mean 4, deviation sqrt(8)
    root7, root8 = math.sqrt(7), math.sqrt(8)
    expected = tensor([-1 / root7, -2 / root7, 3 / root7, -2 / root8, 2 / root8])
    assert_close(grpo(RETURNS, GROUPS), expected, atol=1e-5, rtol=0)


def test_dr_grpo_matches_hand_computation() -> None:
    assert_close(dr_grpo(RETURNS, GROUPS), tensor([-1.0, -2.0, 3.0, -2.0, 2.0]))  # minus 2; minus 4


def test_rloo_matches_hand_computation() -> None:
    # 1 - (0 + 5) / 2; 0 - (1 + 5) / 2; 5 - (1 + 0) / 2; 2 - 6; 6 - 2
    assert_close(rloo(RETURNS, GROUPS), tensor([-1.5, -3.0, 4.5, -4.0, 4.0]))


def test_remax_matches_hand_computation() -> None:
    assert_close(remax(tensor([1.0, 0.0, 5.0]), tensor([2.0, 2.0, -1.0])), tensor([-1.0, -2.0, 6.0]))


def test_reward_to_go_matches_hand_computation() -> None:
    advantages = reward_to_go(tensor([[1.0, 2.0, 4.0]]), torch.ones(1, 3, dtype=torch.bool), gamma=0.5)
    assert_close(advantages, tensor([[3.0, 4.0, 4.0]]))  # 1 + .5 * 4; 2 + .5 * 4; 4


def test_reward_to_go_steps_over_masked_gaps_and_padding_whatever_they_hold() -> None:
    mask = tensor([[True, False, True, False]])
    advantages = reward_to_go(tensor([[1.0, NAN, 4.0, 999.0]]), mask, gamma=0.5)
    assert_close(advantages, tensor([[3.0, 0.0, 4.0, 0.0]]))  # 1 + .5 * 4: the gap does not discount


def test_group_estimators_give_exactly_zero_without_contrast() -> None:
    # 0.1 three times has a mean that is not 0.1 in float32.
    returns, groups = tensor([0.1, 0.1, 0.1, 7.0]), tensor([0, 0, 0, 1])
    for estimator in (grpo, dr_grpo, rloo):
        assert estimator(returns, groups).tolist() == [0.0] * 4


def test_group_advantages_do_not_depend_on_where_a_group_stands() -> None:
    order = tensor([3, 0, 4, 2, 1])
    for estimator in (grpo, dr_grpo, rloo):
        assert_close(estimator(RETURNS[order], GROUPS[order]), estimator(RETURNS, GROUPS)[order])


def test_rloo_is_dr_grpo_times_n_over_n_minus_one() -> None:
    assert_close(rloo(RETURNS, GROUPS), dr_grpo(RETURNS, GROUPS) * tensor([1.5, 1.5, 1.5, 2.0, 2.0]))


def test_group_statistics_match_hand_computation() -> None:
    assert group_size(GROUPS).tolist() == [3, 3, 3, 2, 2]
    assert_close(group_mean(RETURNS, GROUPS), tensor([2.0, 2.0, 2.0, 4.0, 4.0]))
    assert_close(group_std(RETURNS, GROUPS), tensor([7.0, 7.0, 7.0, 8.0, 8.0]).sqrt())
    assert group_std(tensor([3.0]), tensor([0])).tolist() == [0.0]
    assert has_contrast(tensor([1.0, 1.0, 2.0, 3.0, 3.0]), GROUPS).tolist() == [True, True, True, False, False]
