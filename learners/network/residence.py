"""Where a learner's networks and moments lie: on their device, or on the host while others use the device."""

from collections.abc import Iterable

import torch
from torch import nn

from learners.network.optimizer import GuardedAdamW

HOST = torch.device("cpu")


def move_state(modules: Iterable[nn.Module], optimizer: GuardedAdamW, device: torch.device) -> None:
    """Between host and CUDA parameters stay the same objects, so that the optimizer goes on with them. Gradients are dropped."""
    optimizer.zero_grad()
    for module in modules:
        module.to(device)
    optimizer.move_to(device)
    if device.type == "cpu" and torch.cuda.is_available():
        torch.cuda.empty_cache()
