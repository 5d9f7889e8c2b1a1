"""The CUDA devices of this machine, and what they are called. Imports torch only where there is a driver."""

import functools
from collections.abc import Callable
from importlib.metadata import version

import pytest

from cluster.processes.placement import this_machine

GIB = 2**30


@functools.cache
def num_devices() -> int:
    """That torch can use; 0 with a torch for CPUs."""
    if this_machine().num_gpus == 0:
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def needs_devices(count: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Left out, and told in the table, where the machine has fewer."""
    return pytest.mark.skipif(num_devices() < count, reason=f"needs {count} GPUs, this machine has {num_devices()}")


def described() -> list[str]:
    """Cards and versions."""
    import torch

    cards = [torch.cuda.get_device_properties(index) for index in range(num_devices())]
    names = [f"{card.name} ({card.total_memory / GIB:.0f} GiB)" for card in cards]
    return [
        ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)),
        f"torch {torch.__version__} with CUDA {torch.version.cuda}",
        *(f"{package} {version(package)}" for package in ("vllm", "ray", "transformers")),
    ]
