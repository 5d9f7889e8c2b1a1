"""What must hold for every policy loss and every estimator, whatever its formula."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close

from learners.algorithms.advantages.dr_grpo import dr_grpo
from learners.algorithms.advantages.grpo import grpo
from learners.algorithms.advantages.rloo import rloo
from learners.algorithms.aggregation import LossTokens, constant_length, sequence_mean, token_mean
from learners.algorithms.kl import k1, k2, k3
from learners.algorithms.loss_output import LossOutput
from learners.algorithms.losses.cispo import cispo_loss
from learners.algorithms.losses.entropy import entropy_loss
from learners.algorithms.losses.gspo import gspo_loss
from learners.algorithms.losses.kl_penalty import kl_penalty_loss
from learners.algorithms.losses.policy_gradient import policy_gradient_loss
from learners.algorithms.losses.ppo_clip import ppo_clip_loss
from learners.algorithms.losses.value import clipped_value_loss
from learners.algorithms.masking import on_tokens

NAN = float("nan")
CLIP: dict[str, Any] = {"clip_eps": 0.2, "clip_eps_high": 0.28}
POLICY_LOSSES: dict[str, Callable[..., LossOutput]] = {
    "ppo_clip": partial(ppo_clip_loss, **CLIP),
    "dual_clip": partial(ppo_clip_loss, **CLIP, dual_clip=3.0),
    "gspo": partial(gspo_loss, **CLIP),
    "cispo": partial(cispo_loss, **CLIP),
    "policy_gradient": policy_gradient_loss,
}
# All take (four [B, T] tensors, tokens); the first has the gradient.
ALL_LOSSES: dict[str, Callable[..., LossOutput]] = {
    **POLICY_LOSSES,
    "value": lambda a, b, c, d, tokens: clipped_value_loss(a, b, c, tokens, clip_eps=0.2),
    "value_unclipped": lambda a, b, c, d, tokens: clipped_value_loss(a, b, c, tokens, clip_eps=math.inf),
    "entropy": lambda a, b, c, d, tokens: entropy_loss(a, tokens),
    "k2": lambda a, b, c, d, tokens: kl_penalty_loss(a, b, tokens, estimator=k2),
    "k3": lambda a, b, c, d, tokens: kl_penalty_loss(a, b, tokens, estimator=k3),
}
AGGREGATIONS: dict[str, Callable[[Tensor, int, int], LossTokens]] = {
    "token_mean": lambda mask, num_tokens, rows: token_mean(mask, num_tokens=num_tokens),
    "sequence_mean": lambda mask, num_tokens, rows: sequence_mean(mask, num_tokens=num_tokens, num_trajectories=rows),
    "constant_length": lambda mask, num_tokens, rows: constant_length(
        mask, num_tokens=num_tokens, num_trajectories=rows, max_tokens=8
    ),
}
every_loss = pytest.mark.parametrize("loss", ALL_LOSSES.values(), ids=ALL_LOSSES)
every_policy_loss = pytest.mark.parametrize("loss", POLICY_LOSSES.values(), ids=POLICY_LOSSES)
every_aggregation = pytest.mark.parametrize("aggregation", AGGREGATIONS.values(), ids=AGGREGATIONS)


def _batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    """(four [4, 3] tensors, mask): ragged, one gap, one single token."""
    generator = torch.Generator().manual_seed(seed)
    mask = tensor([[True, True, True], [True, False, True], [True, False, False], [True, True, False]])
    return torch.randn(4, 4, 3, generator=generator), mask


@every_loss
@every_aggregation
def test_micro_batches_and_ranks_add_up(
    loss: Callable[..., LossOutput], aggregation: Callable[[Tensor, int, int], LossTokens]
) -> None:
    numbers, mask = _batch()
    whole, parts = numbers.clone().requires_grad_(), numbers.clone().requires_grad_()
    output = loss(*whole, aggregation(mask, 8, 4))
    output.loss.backward()
    outputs = [loss(*parts[:, rows], aggregation(mask[rows], 8, 4)) for rows in ([0], [1, 2], [3])]
    sum(part.loss for part in outputs).backward()
    assert_close(sum(part.loss for part in outputs), output.loss)
    assert parts.grad is not None
    assert whole.grad is not None
    assert_close(parts.grad[0], whole.grad[0])  # only the first tensor carries a gradient in training
    for name, value in output.metrics.items():
        assert_close(sum(part.metrics[name] for part in outputs), value)


@every_loss
@every_aggregation
@pytest.mark.parametrize("filler", [NAN, 999.0])
def test_what_is_masked_and_padding_change_nothing(
    loss: Callable[..., LossOutput], aggregation: Callable[[Tensor, int, int], LossTokens], filler: float
) -> None:
    numbers, mask = _batch()
    clean = numbers.clone().requires_grad_()
    expected = loss(*clean, aggregation(mask, 8, 4))
    expected.loss.backward()
    wide_mask = torch.cat([mask, torch.zeros(4, 2, dtype=torch.bool)], dim=1)
    wide = torch.cat([numbers, torch.zeros(4, 4, 2)], dim=2)
    dirty = torch.where(wide_mask, wide, filler).requires_grad_()
    output = loss(*dirty, aggregation(wide_mask, 8, 4))
    output.loss.backward()
    assert_close(output.loss, expected.loss)
    assert dirty.grad is not None
    assert clean.grad is not None
    assert_close(dirty.grad[0], torch.cat([torch.where(mask, clean.grad[0], 0.0), torch.zeros(4, 2)], dim=1))
    for name, value in expected.metrics.items():
        assert_close(output.metrics[name], value)


@every_policy_loss
@every_aggregation
def test_the_on_policy_gradient_is_the_policy_gradient(
    loss: Callable[..., LossOutput], aggregation: Callable[[Tensor, int, int], LossTokens]
) -> None:
    numbers, mask = _batch()
    advantages = on_tokens(tensor([2.0, -1.0, 0.5, 3.0]), mask)  # one a completion, as GSPO needs it
    tokens = aggregation(mask, 8, 4)
    logprobs = numbers[0].clone().requires_grad_()
    loss(logprobs, logprobs.detach(), advantages, torch.ones(4, 3), tokens).loss.backward()
    lengths = mask.sum(1, keepdim=True)
    weights = tokens.weights_BT
    if loss is POLICY_LOSSES["gspo"]:  # the ratio of a completion has its mean gradient on each of its tokens
        weights = (weights.sum(1, keepdim=True) / lengths) * mask
    assert_close(logprobs.grad, -advantages * weights)


@every_policy_loss
@pytest.mark.parametrize("estimator", [grpo, dr_grpo, rloo])
def test_a_group_of_equal_rewards_gives_zero_gradient(
    loss: Callable[..., LossOutput], estimator: Callable[[Tensor, Tensor], Tensor]
) -> None:
    numbers, mask = _batch()
    advantages = on_tokens(estimator(torch.full((4,), 0.1), tensor([0, 0, 0, 1])), mask)
    logprobs = numbers[0].clone().requires_grad_()
    loss(logprobs, numbers[1], advantages, torch.ones(4, 3), token_mean(mask, num_tokens=8)).loss.backward()
    assert logprobs.grad is not None
    assert (logprobs.grad == 0).all()


def test_the_gradient_of_k2_is_that_of_the_reverse_kl_and_that_of_k1_is_zero() -> None:
    logits = tensor([0.3, -0.5, 1.2], dtype=torch.float64, requires_grad=True)
    ref_logprobs = torch.log_softmax(tensor([1.0, 0.0, -1.0], dtype=torch.float64), 0)
    logprobs = torch.log_softmax(logits, 0)
    kl = (logprobs.exp() * (logprobs - ref_logprobs)).sum()
    (kl_gradient,) = torch.autograd.grad(kl, logits, retain_graph=True)
    probabilities = logprobs.exp().detach()  # the samples' distribution, which has no gradient

    def expected_gradient(estimator: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        mean = (probabilities * estimator(logprobs, ref_logprobs)).sum()
        return torch.autograd.grad(mean, logits, retain_graph=True)[0]

    assert_close(expected_gradient(k2), kl_gradient)
    assert_close(expected_gradient(k1), torch.zeros(3, dtype=torch.float64))
    # k3's is that of the forward KL, which agrees to first order where the two policies are close.
    forward_kl = (ref_logprobs.exp() * (ref_logprobs - logprobs)).sum()
    (forward_gradient,) = torch.autograd.grad(forward_kl, logits, retain_graph=True)
    assert_close(expected_gradient(k3), forward_gradient)
