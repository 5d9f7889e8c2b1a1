"""Losses, KL estimators and mismatch weights, by hand and by property."""

import math

import torch
from torch import Tensor, tensor
from torch.testing import assert_close

from learners.algorithms.kl import k1, k2, k3
from learners.algorithms.losses import clipped_policy_loss, clipped_value_loss, entropy_loss
from learners.algorithms.mismatch import mismatch_metrics, truncated_importance_weights

ALL = tensor([[True, True]])
ONES = tensor([[1.0, 1.0]])
NAN = float("nan")


def test_policy_loss_matches_hand_computation() -> None:
    output = clipped_policy_loss(
        tensor([[math.log(1.5), math.log(0.5)]]),
        tensor([[0.0, 0.0]]),
        tensor([[2.0, -1.0]]),
        ONES,
        ALL,
        clip_eps=0.2,
        num_tokens=2,
    )
    # min(1.5 * 2, 1.2 * 2) = 2.4; min(.5 * -1, .8 * -1) = -.8; -(2.4 - .8) / 2
    assert_close(output.loss, tensor(-0.8))
    assert_close(output.metrics["policy/clip_frac"], tensor(1.0))
    # k3 of KL(old || new), the sample being old's: ratio - 1 - log ratio = .5 - .4054651; -.5 + .6931472
    assert_close(output.metrics["policy/approx_kl"], tensor((0.0945349 + 0.1931472) / 2))


def test_policy_loss_weights_tokens_after_clipping() -> None:
    output = clipped_policy_loss(
        tensor([[math.log(1.5), 0.0]]), tensor([[0.0, 0.0]]), ONES, tensor([[0.5, 2.0]]), ALL, clip_eps=0.2, num_tokens=2
    )
    assert_close(output.loss, tensor(-1.3))  # -(.5 * 1.2 + 2 * 1) / 2


def test_on_policy_gradient_is_minus_advantage_over_tokens() -> None:
    logprobs = tensor([[-1.0, -2.0]], requires_grad=True)
    clipped_policy_loss(logprobs, logprobs.detach(), tensor([[3.0, -1.0]]), ONES, ALL, clip_eps=0.2, num_tokens=4).loss.backward()
    assert_close(logprobs.grad, tensor([[-0.75, 0.25]]))


def test_a_clipped_token_has_no_gradient() -> None:
    logprobs = tensor([[0.5, 0.0]], requires_grad=True)
    clipped_policy_loss(logprobs, torch.zeros(1, 2), ONES, ONES, ALL, clip_eps=0.2, num_tokens=2).loss.backward()
    assert_close(logprobs.grad, tensor([[0.0, -0.5]]))


def test_value_loss_matches_hand_computation() -> None:
    output = clipped_value_loss(tensor([[1.0, 0.1]]), tensor([[0.0, 0.0]]), tensor([[1.0, 1.0]]), ALL, clip_eps=0.2, num_tokens=2)
    # max(0, (.2 - 1)^2) = .64; max(.81, .81) = .81; (.64 + .81) / 2 / 2
    assert_close(output.loss, tensor(0.3625))
    assert_close(output.metrics["value/clip_frac"], tensor(0.5))


def test_entropy_loss_is_the_negative_mean() -> None:
    assert_close(entropy_loss(tensor([[1.0, 2.0]]), ALL, num_tokens=2).loss, tensor(-1.5))


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


def test_importance_weights_are_capped_and_detached() -> None:
    old = tensor([[math.log(0.6), math.log(0.9), NAN]], requires_grad=True)
    weights = truncated_importance_weights(
        old, tensor([[math.log(0.3), math.log(0.1), 0.0]]), tensor([[True, True, False]]), cap=3.0
    )
    assert_close(weights, tensor([[2.0, 3.0, 1.0]]))  # .6 / .3; .9 / .1 = 9 above the cap; masked
    assert not weights.requires_grad


def test_mismatch_metrics_match_hand_computation() -> None:
    metrics = mismatch_metrics(tensor([[0.5, -1.0]]), tensor([[0.0, 0.0]]), ALL, cap=1.2, num_tokens=2)
    assert_close(metrics["policy/mismatch_abs_mean"], tensor(0.75))
    assert_close(metrics["policy/mismatch_capped_frac"], tensor(0.5))  # exp(.5) = 1.65 > 1.2 > exp(-1)
    assert_close(metrics["policy/mismatch_kl"], tensor((math.exp(0.5) - 1.5 + math.exp(-1.0)) / 2))


def _both_losses(batch: tuple[Tensor, ...], mask: Tensor, num_tokens: int) -> tuple[Tensor, dict[str, Tensor]]:
    logprobs, old_logprobs, advantages, values, returns = batch
    policy = clipped_policy_loss(
        logprobs, old_logprobs, advantages, torch.ones_like(logprobs), mask, clip_eps=0.2, num_tokens=num_tokens
    )
    value = clipped_value_loss(values, torch.zeros_like(values), returns, mask, clip_eps=0.2, num_tokens=num_tokens)
    return policy.loss + value.loss, policy.metrics | value.metrics


def test_micro_batches_add_up_to_the_full_batch() -> None:
    torch.manual_seed(0)
    batch, mask = tuple(torch.randn(5, 4, 3)), torch.rand(4, 3) > 0.3
    num_tokens = int(mask.sum())
    loss, metrics = _both_losses(batch, mask, num_tokens)
    parts = [_both_losses(tuple(x[rows] for x in batch), mask[rows], num_tokens) for rows in ([0], [1, 2, 3])]
    assert_close(sum(part[0] for part in parts), loss)
    for name, value in metrics.items():
        assert_close(sum(part[1][name] for part in parts), value)


def test_what_is_masked_changes_neither_losses_nor_gradients() -> None:
    torch.manual_seed(0)
    mask = tensor([[True, True, False]])
    clean = torch.randn(5, 1, 3)
    dirty = torch.where(mask, clean, NAN).requires_grad_()
    loss, metrics = _both_losses(tuple(dirty), mask, 2)
    loss.backward()
    assert_close(loss, _both_losses(tuple(clean), mask, 2)[0])
    assert all(value.isfinite() for value in metrics.values())
    assert dirty.grad is not None
    assert dirty.grad[:, :, :2].isfinite().all()
    assert (dirty.grad[:, :, 2] == 0).all()
