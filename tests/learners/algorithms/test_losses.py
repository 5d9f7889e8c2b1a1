"""Losses, aggregations, KL estimators and mismatch weights, by hand."""

import math

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from learners.algorithms.aggregation import constant_length, sequence_mean, token_mean
from learners.algorithms.kl import k1, k2, k3
from learners.algorithms.losses.cispo import cispo_loss
from learners.algorithms.losses.entropy import entropy_loss
from learners.algorithms.losses.gspo import gspo_loss
from learners.algorithms.losses.kl_penalty import kl_penalty_loss
from learners.algorithms.losses.policy_gradient import policy_gradient_loss
from learners.algorithms.losses.ppo_clip import ppo_clip_loss
from learners.algorithms.losses.value import clipped_value_loss
from learners.algorithms.mismatch import (
    kept_sequences,
    masked_token_weights,
    mismatch_metrics,
    truncated_sequence_weights,
    truncated_token_weights,
)

ALL = tensor([[True, True]])
TWO = token_mean(ALL, num_tokens=2)
ONES = tensor([[1.0, 1.0]])
OLD = tensor([[0.0, 0.0]])
RATIOS = tensor([[math.log(1.5), math.log(0.5)]])  # log-probabilities 1.5 and 0.5 times the old ones
NAN = float("nan")

pytestmark = pytest.mark.numeric


def test_ppo_loss_matches_hand_computation() -> None:
    output = ppo_clip_loss(RATIOS, OLD, tensor([[2.0, -1.0]]), ONES, TWO, clip_eps=0.2, clip_eps_high=0.2)
    # min(1.5 * 2, 1.2 * 2) = 2.4; min(.5 * -1, .8 * -1) = -.8; -(2.4 - .8) / 2
    assert_close(output.loss, tensor(-0.8))
    assert_close(output.metrics["policy/clip_frac"], tensor(1.0))


def test_the_kl_of_one_update_matches_hand_computation() -> None:
    # k3 of KL(old || new), the sample being old's: ratio - 1 - log ratio = .5 - .4054651; -.5 + .6931472
    assert_close(TWO.mean(k3(OLD, RATIOS)), tensor((0.0945349 + 0.1931472) / 2))


def test_clip_higher_lets_good_tokens_go_further_up() -> None:
    output = ppo_clip_loss(RATIOS, OLD, tensor([[2.0, -1.0]]), ONES, TWO, clip_eps=0.2, clip_eps_high=0.28)
    assert_close(output.loss, tensor(-(2.56 - 0.8) / 2))  # 1.28 * 2


def test_dual_clip_limits_what_a_bad_token_costs() -> None:
    logprobs = tensor([[math.log(5.0), math.log(5.0)]])
    output = ppo_clip_loss(logprobs, OLD, tensor([[-1.0, 1.0]]), ONES, TWO, clip_eps=0.2, clip_eps_high=0.2, dual_clip=3.0)
    # max(min(-5, -1.2), -3) = -3; min(5, 1.2) = 1.2, untouched for A > 0
    assert_close(output.loss, tensor(-(-3.0 + 1.2) / 2))


def test_ppo_loss_weights_tokens_after_clipping() -> None:
    output = ppo_clip_loss(tensor([[math.log(1.5), 0.0]]), OLD, ONES, tensor([[0.5, 2.0]]), TWO, clip_eps=0.2, clip_eps_high=0.2)
    assert_close(output.loss, tensor(-1.3))  # -(.5 * 1.2 + 2 * 1) / 2


def test_a_clipped_token_has_no_gradient_in_ppo() -> None:
    logprobs = tensor([[0.5, 0.0]], requires_grad=True)
    ppo_clip_loss(logprobs, OLD, ONES, ONES, TWO, clip_eps=0.2, clip_eps_high=0.2).loss.backward()
    assert_close(logprobs.grad, tensor([[0.0, -0.5]]))


def test_cispo_loss_matches_hand_computation() -> None:
    logprobs = RATIOS.clone().requires_grad_()
    output = cispo_loss(logprobs, OLD, tensor([[2.0, -1.0]]), ONES, TWO, clip_eps=1.0, clip_eps_high=0.2)
    # weights clip(1.5) = 1.2 and .5, each times A * log pi
    assert_close(output.loss, tensor(-(1.2 * 2 * math.log(1.5) - 0.5 * math.log(0.5)) / 2))
    output.loss.backward()
    assert_close(logprobs.grad, tensor([[-1.2, 0.25]]))  # -1.2 * 2 / 2: a clipped token still learns; .5 * 1 / 2
    assert_close(output.metrics["policy/clip_frac"], tensor(0.5))


def test_gspo_loss_matches_hand_computation() -> None:
    # Completion 1: ratios 1.5 and .5, geometric mean sqrt(.75) = .8660, A = -2. Completion 2: one token, ratio 1.1, A = 3.
    logprobs = tensor([[math.log(1.5), math.log(0.5)], [math.log(1.1), NAN]], requires_grad=True)
    mask = tensor([[True, True], [True, False]])
    tokens = sequence_mean(mask, num_tokens=3, num_trajectories=2)
    advantages = tensor([[-2.0, -2.0], [3.0, 0.0]])
    output = gspo_loss(logprobs, torch.zeros(2, 2), advantages, torch.ones(2, 2), tokens, clip_eps=0.1, clip_eps_high=0.05)
    # min(.866 * -2, .9 * -2) = -1.8; min(1.1 * 3, 1.05 * 3) = 3.15; -(-1.8 + 3.15) / 2
    assert_close(output.loss, tensor(-0.675))
    assert_close(output.metrics["policy/clip_frac"], tensor(1.0))


def test_gspo_gradient_is_that_of_the_whole_completion() -> None:
    logprobs = tensor([[0.0, 0.0]], requires_grad=True)
    tokens = sequence_mean(ALL, num_tokens=2, num_trajectories=1)
    gspo_loss(logprobs, OLD, tensor([[4.0, 4.0]]), ONES, tokens, clip_eps=0.1, clip_eps_high=0.1).loss.backward()
    assert_close(logprobs.grad, tensor([[-2.0, -2.0]]))  # d s / d logprob = s / length; -4 / 2 each


def test_policy_gradient_loss_matches_hand_computation() -> None:
    output = policy_gradient_loss(tensor([[-1.0, -2.0]]), OLD, tensor([[2.0, -1.0]]), tensor([[1.0, 0.5]]), TWO)
    assert_close(output.loss, tensor(0.5))  # -(2 * -1 + .5 * -1 * -2) / 2


def test_value_loss_matches_hand_computation() -> None:
    output = clipped_value_loss(tensor([[1.0, 0.1]]), OLD, tensor([[1.0, 1.0]]), TWO, clip_eps=0.2)
    # max(0, (.2 - 1)^2) = .64; max(.81, .81) = .81; (.64 + .81) / 2 / 2
    assert_close(output.loss, tensor(0.3625))
    assert_close(output.metrics["value/clip_frac"], tensor(0.5))


def test_value_loss_without_clipping_is_half_the_mean_square() -> None:
    output = clipped_value_loss(tensor([[1.0, 0.1]]), OLD, tensor([[1.0, 1.0]]), TWO, clip_eps=math.inf)
    assert_close(output.loss, tensor(0.2025))  # (0 + .81) / 2 / 2


def test_entropy_loss_is_the_negative_mean() -> None:
    assert_close(entropy_loss(tensor([[1.0, 2.0]]), TWO).loss, tensor(-1.5))


def test_kl_penalties_match_hand_computation() -> None:
    logprobs, ref_logprobs = tensor([[0.5, -1.0]]), OLD
    assert_close(kl_penalty_loss(logprobs, ref_logprobs, TWO, estimator=k2).loss, tensor((0.125 + 0.5) / 2))
    k3_of_each = (math.exp(-0.5) - 0.5) + (math.exp(1.0) - 2.0)  # exp(-x) - 1 + x
    assert_close(kl_penalty_loss(logprobs, ref_logprobs, TWO, estimator=k3).loss, tensor(k3_of_each / 2))


def test_aggregations_match_hand_computation() -> None:
    # Completions of 1 and 3 tokens, in a batch of 4 completions and 10 tokens.
    mask = tensor([[True, False, False], [True, True, True]])
    losses = tensor([[6.0, NAN, NAN], [1.0, 2.0, 3.0]])
    assert_close(token_mean(mask, num_tokens=10).loss(losses), tensor(1.2))  # (6 + 1 + 2 + 3) / 10
    by_sequence = sequence_mean(mask, num_tokens=10, num_trajectories=4)
    assert_close(by_sequence.loss(losses), tensor(2.0))  # (6 / 1 + 6 / 3) / 4
    by_length = constant_length(mask, num_tokens=10, num_trajectories=4, max_tokens=5)
    assert_close(by_length.loss(losses), tensor(0.6))  # (6 + 6) / (4 * 5)
    for tokens in (by_sequence, by_length):
        assert_close(tokens.mean(losses), tensor(1.2))  # metrics are means over tokens, however the loss is aggregated


def test_kl_estimators_match_hand_computation() -> None:
    logprobs, ref_logprobs = tensor([0.5]), tensor([0.0])
    assert_close(k1(logprobs, ref_logprobs), tensor([0.5]))
    assert_close(k2(logprobs, ref_logprobs), tensor([0.125]))
    assert_close(k3(logprobs, ref_logprobs), tensor([math.exp(-0.5) - 1 + 0.5]))


def test_k1_and_k3_average_to_the_kl_of_a_distribution() -> None:
    p, q = tensor([0.2, 0.3, 0.5]), tensor([0.4, 0.4, 0.2])
    kl = (p * (p / q).log()).sum()
    assert_close((p * k1(p.log(), q.log())).sum(), kl)
    assert_close((p * k3(p.log(), q.log())).sum(), kl)


OLD_OF_THREE = tensor([[math.log(0.6), math.log(0.9), NAN]], requires_grad=True)
ROLLOUT_OF_THREE = tensor([[math.log(0.3), math.log(0.1), 0.0]])
FIRST_TWO = tensor([[True, True, False]])


def test_token_weights_are_capped_and_detached() -> None:
    weights = truncated_token_weights(OLD_OF_THREE, ROLLOUT_OF_THREE, FIRST_TWO, cap=3.0)
    assert_close(weights, tensor([[2.0, 3.0, 1.0]]))  # .6 / .3; .9 / .1 = 9 above the cap; masked
    assert not weights.requires_grad


def test_sequence_weights_are_capped_products() -> None:
    weights = truncated_sequence_weights(OLD_OF_THREE, ROLLOUT_OF_THREE, FIRST_TWO, cap=100.0)
    assert_close(weights, tensor([[18.0, 18.0, 0.0]]))  # 2 * 9
    capped = truncated_sequence_weights(OLD_OF_THREE, ROLLOUT_OF_THREE, FIRST_TWO, cap=5.0)
    assert_close(capped, tensor([[5.0, 5.0, 0.0]]))
    assert not weights.requires_grad


def test_masked_weights_drop_what_is_outside_the_band() -> None:
    weights = masked_token_weights(OLD_OF_THREE, ROLLOUT_OF_THREE, FIRST_TWO, lowest=0.5, highest=5.0)
    assert_close(weights, tensor([[2.0, 0.0, 1.0]]))  # 2 is kept as it is; 9 is outside


def test_sequences_are_kept_by_their_geometric_mean() -> None:
    # sqrt(2 * 9) = 4.243
    for highest, kept in ((4.2, False), (4.3, True)):
        assert kept_sequences(OLD_OF_THREE, ROLLOUT_OF_THREE, FIRST_TWO, lowest=0.5, highest=highest).tolist() == [kept]


def test_mismatch_metrics_match_hand_computation() -> None:
    metrics = mismatch_metrics(tensor([[0.5, -1.0]]), OLD, ALL, cap=1.2, num_tokens=2)
    assert_close(metrics["policy/mismatch_abs_mean"], tensor(0.75))
    assert_close(metrics["policy/mismatch_capped_frac"], tensor(0.5))  # exp(.5) = 1.65 > 1.2 > exp(-1)
    assert_close(metrics["policy/mismatch_kl"], tensor((math.exp(0.5) - 1.5 + math.exp(-1.0)) / 2))
