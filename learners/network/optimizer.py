"""AdamW with warm-up, gradient clipping, and a step that happens only where everything is finite."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from learners.settings.training import OptimizerConfig

FINAL_RATE_FRAC = 0.1  # what linear decay ends at


class GuardedAdamW:
    """The optimizer of one learner. Each group of parameters has its own peak learning rate."""

    def __init__(self, groups: Sequence[tuple[list[Tensor], float]], config: OptimizerConfig) -> None:
        self._config = config
        self._peak_rates = [rate for _, rate in groups]
        self.parameters = [parameter for parameters, _ in groups for parameter in parameters]
        self._adamw = torch.optim.AdamW(
            [{"params": parameters, "lr": rate} for parameters, rate in groups],
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.num_steps = 0  # completed
        self.num_skipped_in_a_row = 0  # for want of a finite loss or gradient

    def zero_grad(self) -> None:
        self._adamw.zero_grad(set_to_none=True)

    def step(self, loss: float, *, total_steps: int) -> tuple[float, bool]:
        """Clip to `max_grad_norm` and step; returns (norm before clipping, whether the step was taken).

        A loss or gradient that is not finite leaves weights and moments as they were. Gradients and loss are those of the
        whole minibatch, equal on all ranks, so all ranks decide alike.
        """
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients, error_if_nonfinite=False)
        if not math.isfinite(loss) or not math.isfinite(norm.item()):
            self.num_skipped_in_a_row += 1
            return norm.item(), False
        self.num_skipped_in_a_row = 0
        torch.nn.utils.clip_grads_with_norm_(self.parameters, self._config.max_grad_norm, norm)
        factor = rate_factor(self.num_steps, self._config, total_steps=total_steps)
        for group, peak in zip(self._adamw.param_groups, self._peak_rates, strict=True):
            group["lr"] = peak * factor
        self._adamw.step()
        self.num_steps += 1
        return norm.item(), True

    def state(self) -> dict[str, Tensor]:
        """The moments of every parameter, by "number/name"; empty before the first step. Not copied."""
        states = self._adamw.state_dict()["state"]
        return {f"{number}/{name}": tensor for number, state in states.items() for name, tensor in state.items()}

    def restore(self, state: Mapping[str, Tensor], *, num_steps: int) -> None:
        """Go on from the `state` after `num_steps` steps."""
        states: dict[int, dict[str, Tensor]] = {}
        for key, tensor in state.items():
            number, _, name = key.partition("/")
            states.setdefault(int(number), {})[name] = tensor
        self._adamw.load_state_dict({"state": states, "param_groups": self._adamw.state_dict()["param_groups"]})
        self.num_steps = num_steps

    def learning_rate(self) -> float:
        """Of the first group, at the last step."""
        return float(self._adamw.param_groups[0]["lr"])


def rate_factor(step: int, config: OptimizerConfig, *, total_steps: int) -> float:
    """Share of the peak learning rate at optimizer step 0, 1, ...; linear decay reaches a tenth at the last step."""
    warm_up = min(1.0, (step + 1) / (config.warmup_steps + 1))
    if config.decay == "constant":
        return warm_up
    progress = (step - config.warmup_steps) / max(1, total_steps - 1 - config.warmup_steps)
    return warm_up * (1 - (1 - FINAL_RATE_FRAC) * min(1.0, max(0.0, progress)))
