"""The optimizer's guard, clipping and schedule."""

import pytest
import torch
from torch.testing import assert_close

from learners.network.optimizer import GuardedAdamW, rate_factor
from learners.settings.training import OptimizerConfig


def _optimizer(**fields: float) -> tuple[torch.Tensor, GuardedAdamW]:
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    return weight, GuardedAdamW([([weight], 0.1)], OptimizerConfig(learning_rate=0.1, **fields))


@pytest.mark.parametrize(("loss", "gradient"), [(float("nan"), 1.0), (1.0, float("inf")), (1.0, float("nan"))])
def test_nothing_changes_where_something_is_not_finite(loss: float, gradient: float) -> None:
    weight, optimizer = _optimizer()
    weight.grad = torch.tensor([gradient, 1.0])
    assert optimizer.step(loss, total_steps=1)[1] is False
    assert weight.tolist() == [1.0, 2.0]
    assert optimizer.num_steps == 0
    # The moments are untouched too: the next step is the first one.
    weight.grad = torch.tensor([1.0, -1.0])
    optimizer.step(1.0, total_steps=1)
    assert_close(weight.detach(), torch.tensor([0.9, 2.1]))  # Adam's first step is the learning rate against the sign


def test_the_reported_norm_is_that_before_clipping() -> None:
    weight, optimizer = _optimizer(max_grad_norm=1.0)
    weight.grad = torch.tensor([3.0, 4.0])
    norm, stepped = optimizer.step(0.0, total_steps=1)
    assert (norm, stepped) == (5.0, True)
    assert_close(weight.grad, torch.tensor([0.6, 0.8]))


def test_the_rate_rises_and_falls_in_straight_lines() -> None:
    config = OptimizerConfig(warmup_steps=1, decay="linear")
    factors = [rate_factor(step, config, total_steps=4) for step in range(4)]
    assert factors == pytest.approx([0.5, 1.0, 0.55, 0.1])  # (0 + 1) / 2; peak; halfway to a tenth; a tenth
    assert rate_factor(9, OptimizerConfig(), total_steps=4) == 1.0
