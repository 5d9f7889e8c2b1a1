"""Whether two trainings did the same, told by what rounding leaves alone.

Float32 sums of other parts, or by another kernel, differ in their last digits. Gradients are such sums, so they are compared
relative to the largest of their tensor. Adam's step is a quotient of two of them: where a gradient is rounding alone, so is the
step, of either sign and of up to full size. So weights are compared where every gradient was above rounding.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from learners.network.optimizer import GuardedAdamW

# Of the largest gradient of the same tensor. Float32 sums of these lengths agree to 3e-6 of it; steps that were rounding alone
# move the weights, and so the next gradients, by less than the rest.
GRADIENT_TOLERANCE = 1e-4
# Of the same. What rounding changes of such a gradient is a third of a percent, and so are the step's differences.
ABOVE_ROUNDING = 1e-3
# Of one step at the peak learning rate.
STEP_TOLERANCE = 0.01

Gradients = list[dict[str, Tensor]]  # of every optimizer step, after clipping, by the parameter's name


@contextmanager
def recorded_gradients() -> Iterator[Gradients]:
    """What optimizers step by inside the block; on several ranks each step is there once a rank."""
    gradients: Gradients = []
    step = GuardedAdamW.step

    def recording_step(optimizer: GuardedAdamW, loss: float, *, total_steps: int) -> tuple[float, bool]:
        outcome = step(optimizer, loss, total_steps=total_steps)
        named = optimizer.parameters.items()
        gradients.append({name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None})
        return outcome

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GuardedAdamW, "step", recording_step)
        yield gradients


def assert_same_gradients(actual: Sequence[Mapping[str, Tensor]], expected: Sequence[Mapping[str, Tensor]]) -> None:
    """Step by step, relative to the largest of each parameter."""
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, gradient in theirs.items():
            atol = GRADIENT_TOLERANCE * float(gradient.abs().max())
            assert_close(ours[name], gradient, atol=atol, rtol=0, msg=lambda text, name=name: f"gradient of {name}: {text}")


def assert_same_weights(
    actual: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    gradients: Sequence[Mapping[str, Tensor]],
    *,
    learning_rate: float,
) -> None:
    """Where all `gradients` (of either training) were above rounding; exactly, where there was none."""
    for name, weight in expected.items():
        of_steps = [step[name] for step in gradients if name in step]
        certain = torch.ones_like(weight, dtype=torch.bool)
        for gradient in of_steps:
            certain &= gradient.abs() >= ABOVE_ROUNDING * gradient.abs().max()
        atol = STEP_TOLERANCE * learning_rate if of_steps else 0.0
        assert_close(
            actual[name][certain], weight[certain], atol=atol, rtol=0, msg=lambda text, name=name: f"weight {name}: {text}"
        )
