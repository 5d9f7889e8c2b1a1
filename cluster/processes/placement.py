"""What a run asks of its machines, checked before Ray starts, or once it has joined a cluster."""

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import ConfigError

CONNECT_TIMEOUT_S = 5.0
NVIDIA_DEVICES = Path("/proc/driver/nvidia/gpus")  # one folder a GPU, readable without any library


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleRequest:
    """The processes of one role. Produced by `learners.run.plan`, consumed by `check_placement` and `rayward plan`."""

    role: str
    count: int
    num_cpus: float  # for each process
    num_gpus: float  # for each process
    setting: str  # the configuration key that lowers the count

    @property
    def total_cpus(self) -> float:
        return self.count * self.num_cpus

    @property
    def total_gpus(self) -> float:
        return self.count * self.num_gpus


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What one machine has, or a whole cluster."""

    num_cpus: float
    num_gpus: float
    name: str = "this machine"


def this_machine() -> Machine:
    """CPUs that this process may use, and NVIDIA devices."""
    gpus = len(list(NVIDIA_DEVICES.iterdir())) if NVIDIA_DEVICES.is_dir() else 0
    return Machine(num_cpus=len(os.sched_getaffinity(0)), num_gpus=gpus)


def cluster_address() -> str | None:
    """Of the Ray cluster that the environment names (`RAY_ADDRESS`, which `ray job submit` sets); None: start a local one.

    Raises `ConfigError` for an address of Ray Client, and where nobody listens.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if "://" in address:
        raise ConfigError(
            f"RAY_ADDRESS={address}: a run needs a cluster's own address (HOST:PORT, or auto); from elsewhere submit it as a job:"
            " ray job submit -- rayward train ..."
        )
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
        except (OSError, OverflowError) as error:  # ray.init would go on asking for minutes
            raise ConfigError(
                f"RAY_ADDRESS={address}: no Ray cluster answers there ({error}); start it with ray start --head, correct the"
                " address, or unset the variable for a Ray of this run's own"
            ) from error
    return None if address in {"", "local"} else address


def check_placement(requests: Sequence[RoleRequest], machine: Machine) -> None:
    """Raise `ConfigError` with one line for each resource that does not suffice."""
    problems = []
    for unit, available, totals in (
        ("CPU", machine.num_cpus, [(request, request.total_cpus) for request in requests]),
        ("GPU", machine.num_gpus, [(request, request.total_gpus) for request in requests]),
    ):
        needed = sum(total for _, total in totals)
        if needed > available + 1e-9:
            parts = " + ".join(f"{total:g} {request.role}" for request, total in totals if total)
            largest, _ = max(totals, key=lambda pair: pair[1])
            problems.append(
                f"placement needs {needed:g} {unit}s ({parts}), {machine.name} has {available:g}; lower {_remedy(largest, unit)}"
            )
    if problems:
        raise ConfigError(problems)


def _remedy(request: RoleRequest, unit: str) -> str:
    """The settings, with their values, that make the role smaller."""
    section = request.setting.rpartition(".")[0]
    each = f"{section}.num_{unit.lower()}s (now {request.num_cpus if unit == 'CPU' else request.num_gpus:g})"
    return f"{request.setting} (now {request.count}) or {each}" if request.count > 1 else each
