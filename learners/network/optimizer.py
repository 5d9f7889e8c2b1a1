"""AdamW with warm-up, gradient clipping, and a step that happens only where everything is finite."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cluster.errors import CannotResumeError
from learners.network.sharding import local_part, part_like, whole
from learners.settings.training import OptimizerConfig

FINAL_RATE_FRAC = 0.1  # what linear decay ends at


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterGroup:
    """Parameters that are trained alike. Produced by a learner, consumed by `GuardedAdamW`."""

    parameters: Mapping[str, Tensor]  # by name
    learning_rate: float  # peak
    clipped_with: str  # the gradients of all groups that say the same are limited to `max_grad_norm` together


class GuardedAdamW:
    """The optimizer of one learner. Sharded parameters have sharded gradients and moments; norms are those of the whole."""

    def __init__(self, groups: Sequence[ParameterGroup], config: OptimizerConfig) -> None:
        self._config = config
        self._groups = groups
        self.parameters = {name: parameter for group in groups for name, parameter in group.parameters.items()}
        self._adamw = torch.optim.AdamW(
            [{"params": list(group.parameters.values()), "lr": group.learning_rate} for group in groups],
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
        """Clip to `max_grad_norm` and step; returns (norm of all gradients before clipping, whether the step was taken).

        A loss or gradient that is not finite leaves weights and moments as they were. Gradients and loss are those of the
        whole minibatch, equal on all ranks, so all ranks decide alike. A parameter without a gradient rests: no moment,
        no decay.
        """
        clipped_together: dict[str, list[Tensor]] = {}
        for group in self._groups:
            clipped_together.setdefault(group.clipped_with, []).extend(group.parameters.values())
        norms = {clip: _gradient_norm(parameters) for clip, parameters in clipped_together.items()}
        norm = math.hypot(*(each.item() for each in norms.values()))
        if not math.isfinite(loss) or not math.isfinite(norm):
            self.num_skipped_in_a_row += 1
            return norm, False
        self.num_skipped_in_a_row = 0
        for clip, parameters in clipped_together.items():
            torch.nn.utils.clip_grads_with_norm_(parameters, self._config.max_grad_norm, norms[clip])
        factor = rate_factor(self.num_steps, self._config, total_steps=total_steps)
        for settings, group in zip(self._adamw.param_groups, self._groups, strict=True):
            settings["lr"] = group.learning_rate * factor
        self._adamw.step()
        self.num_steps += 1
        return norm, True

    def state(self) -> dict[str, Tensor]:
        """By "parameter/name": of every trained parameter its steps, and its moments where it has taken any. Not copied."""
        return {
            f"{name}/{key}": tensor
            for name, parameter in self.parameters.items()
            for key, tensor in ({"step": torch.zeros(())} | self._adamw.state.get(parameter, {})).items()
        }

    def restore(self, state: Mapping[str, Tensor], *, num_steps: int) -> None:
        """Go on from the `state` after `num_steps` steps, of which a rank has its part where parameters are sharded.

        Raises `CannotResumeError` where it is that of other parameters.
        """
        states: dict[str, dict[str, Tensor]] = {}
        for key, tensor in state.items():
            name, _, moment = key.rpartition("/")
            states.setdefault(name, {})[moment] = tensor
        self._check_fit(states)
        moved = {
            number: {key: tensor if key == "step" else part_like(tensor, parameter) for key, tensor in states[name].items()}
            for number, (name, parameter) in enumerate(self.parameters.items())
            if states[name]["step"] > 0
        }
        self._adamw.load_state_dict({"state": moved, "param_groups": self._adamw.state_dict()["param_groups"]})
        self.num_steps = num_steps

    def move_to(self, device: torch.device) -> None:
        """The moments lie there from now on; the parameters are others' to move."""
        for state in self._adamw.state.values():
            for key, tensor in state.items():
                state[key] = tensor.to(device)

    def learning_rate(self) -> float:
        """Of the first group, at the last step."""
        return float(self._adamw.param_groups[0]["lr"])

    def _check_fit(self, states: Mapping[str, Mapping[str, Tensor]]) -> None:
        problems = [f"{name} was trained and is now frozen or gone" for name in states if name not in self.parameters]
        problems += [f"{name} is trained and was not" for name in self.parameters if name not in states]
        problems += [
            f"{name} has another shape"
            for name, parameter in self.parameters.items()
            if any(moment.shape != local_part(parameter).shape for key, moment in states.get(name, {}).items() if key != "step")
        ]
        if problems:
            raise CannotResumeError(
                f"the checkpoint's optimizer does not fit the configuration: {'; '.join(problems[:3])}"
                f"{f'; and {len(problems) - 3} more' if len(problems) > 3 else ''}; resume with the settings that wrote it "
                "(num_frozen_layers, lora, critic)"
            )


def rate_factor(step: int, config: OptimizerConfig, *, total_steps: int) -> float:
    """Share of the peak learning rate at optimizer step 0, 1, ...; linear decay reaches a tenth at the last step."""
    warm_up = min(1.0, (step + 1) / (config.warmup_steps + 1))
    if config.decay == "constant":
        return warm_up
    progress = (step - config.warmup_steps) / max(1, total_steps - 1 - config.warmup_steps)
    return warm_up * (1 - (1 - FINAL_RATE_FRAC) * min(1.0, max(0.0, progress)))


def _gradient_norm(parameters: Sequence[Tensor]) -> Tensor:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return whole(torch.nn.utils.get_total_norm(gradients, error_if_nonfinite=False))
