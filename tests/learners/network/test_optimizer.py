"""The optimizer's guard, clipping and schedule."""

import pytest
import torch
from torch.testing import assert_close

from cluster.errors import CannotResumeError
from learners.network.optimizer import GuardedAdamW, ParameterGroup, rate_factor
from learners.settings.training import OptimizerConfig


def _optimizer(**fields: float) -> tuple[torch.Tensor, GuardedAdamW]:
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    return weight, GuardedAdamW([_group(weight=weight)], OptimizerConfig(learning_rate=0.1, **fields))


def _group(*, clipped_with: str = "all", **parameters: torch.Tensor) -> ParameterGroup:
    return ParameterGroup(parameters=parameters, learning_rate=0.1, clipped_with=clipped_with)


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


def test_what_is_clipped_apart_takes_nothing_from_the_rest() -> None:
    policy, critic = (torch.zeros(2, requires_grad=True) for _ in range(2))
    groups = [_group(policy=policy, clipped_with="policy"), _group(critic=critic, clipped_with="critic")]
    optimizer = GuardedAdamW(groups, OptimizerConfig(max_grad_norm=1.0))
    policy.grad, critic.grad = torch.tensor([0.3, 0.4]), torch.tensor([30.0, 40.0])
    norm, _ = optimizer.step(0.0, total_steps=1)
    assert_close(policy.grad, torch.tensor([0.3, 0.4]))  # a norm of 0.5 is within the limit
    assert_close(critic.grad, torch.tensor([0.6, 0.8]))
    assert norm == pytest.approx(50.0025, abs=1e-4)  # of both: sqrt(0.5^2 + 50^2)


def test_a_parameter_without_a_gradient_rests() -> None:
    moving, resting = (torch.ones(1, requires_grad=True) for _ in range(2))
    optimizer = GuardedAdamW([_group(moving=moving, resting=resting)], OptimizerConfig(weight_decay=0.5))
    moving.grad = torch.ones(1)
    optimizer.step(0.0, total_steps=1)
    assert resting.item() == 1.0
    assert (optimizer.state()["moving/step"], optimizer.state()["resting/step"]) == (1, 0)


def test_moments_go_back_to_the_parameter_of_their_name() -> None:
    def pair() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)

    first, second = pair()
    optimizer = GuardedAdamW([_group(first=first, second=second)], OptimizerConfig())
    second.grad = torch.tensor([1.0, -1.0])
    optimizer.step(0.0, total_steps=1)
    first, second = pair()
    swapped = GuardedAdamW([_group(second=second, first=first)], OptimizerConfig())
    swapped.restore(optimizer.state(), num_steps=1)
    assert swapped.num_steps == 1
    assert swapped.state().keys() == optimizer.state().keys()
    assert [name for name, tensor in optimizer.state().items() if not tensor.equal(swapped.state()[name])] == []


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"lowest": 2}, "highest was trained and is now frozen or gone"),
        ({"lowest": 2, "highest": 2, "new": 2}, "new is trained and was not"),
        ({"lowest": 2, "highest": 3}, "highest has another shape"),
    ],
)
def test_moments_of_other_parameters_are_refused_by_name(parameters: dict[str, int], problem: str) -> None:
    weights = {name: torch.zeros(2, requires_grad=True) for name in ("lowest", "highest")}
    saved = GuardedAdamW([_group(**weights)], OptimizerConfig())
    for weight in weights.values():
        weight.grad = torch.ones(2)
    saved.step(0.0, total_steps=1)
    others = {name: torch.zeros(size, requires_grad=True) for name, size in parameters.items()}
    with pytest.raises(CannotResumeError, match=problem):
        GuardedAdamW([_group(**others)], OptimizerConfig()).restore(saved.state(), num_steps=1)
