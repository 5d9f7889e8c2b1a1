"""What a run asks of its machines, checked before Ray starts, or once it has joined a cluster."""

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import ConfigError

CONNECT_TIMEOUT_S = 5.0
NVIDIA_DEVICES = Path("/proc/driver/nvidia/gpus")  # one folder a GPU, readable without any library
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
BYTES_PER_MIB = 2**20
NO_DEVICES = ("", "-1", "NoDevFiles")  # of CUDA_VISIBLE_DEVICES

Seat = Sequence[Mapping[str, float]]  # what a process needs, CPUs and GPUs, of one node or of several


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleRequest:
    """The processes of one role. Produced by `learners.run.plan`, consumed by `check_placement` and `rayward plan`."""

    role: str
    count: int
    num_cpus: float  # for each process
    num_gpus: float  # for each process
    setting: str  # the configuration key that lowers the count
    num_parts: int = 1  # of each process, with equal shares of its CPUs and GPUs, which may be on different nodes

    @property
    def total_cpus(self) -> float:
        return self.count * self.num_cpus

    @property
    def total_gpus(self) -> float:
        return self.count * self.num_gpus

    @property
    def seat(self) -> Seat:
        """What each process needs."""
        return seat_of(self.num_cpus, self.num_gpus, self.num_parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What one machine has, or a whole cluster."""

    num_cpus: float
    num_gpus: float
    name: str = "this machine"


def seat_of(num_cpus: float, num_gpus: float = 0.0, num_parts: int = 1) -> Seat:
    """Of a process in so many equal parts."""
    return ({"CPU": num_cpus / num_parts, "GPU": num_gpus / num_parts},) * num_parts


def this_machine() -> Machine:
    """CPUs and NVIDIA devices that this process may use.

    CPUs are whole, as Ray wants them: a container's quota of 2.5 is 2, and one below 1 is 1.
    """
    gpus = len(list(NVIDIA_DEVICES.iterdir())) if NVIDIA_DEVICES.is_dir() else 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        gpus = 0 if visible.strip() in NO_DEVICES else min(gpus, len(visible.split(",")))
    return Machine(num_cpus=max(1, int(min(len(os.sched_getaffinity(0)), _cpu_quota()))), num_gpus=gpus)


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


def place_on_nodes(requests: Sequence[RoleRequest], nodes: Sequence[Machine]) -> list[dict[str, int]]:
    """How many processes of each role each node holds: largest first, each on the first node with enough left.

    Of a process in parts the parts are counted. Ray places them one by one as well, and moves none afterwards; its order is its
    own. Raises `ConfigError` where processes fit the cluster in sum, but one of them finds no node.
    """
    left = [[node.num_cpus, node.num_gpus] for node in nodes]
    placed: list[dict[str, int]] = [{} for _ in nodes]
    for request in sorted(requests, key=_largest_part, reverse=True):
        need = [request.seat[0]["CPU"], request.seat[0]["GPU"]]
        name = request.role if request.num_parts == 1 else f"{request.role} (1/{request.num_parts})"
        for number in range(1, request.count + 1):
            for _ in request.seat:
                index = _first_with_room(left, need)
                if index is None:
                    raise ConfigError(_no_node(request, number, need, nodes))
                left[index] = [have - want for have, want in zip(left[index], need, strict=True)]
                placed[index][name] = placed[index].get(name, 0) + 1
    return placed


def _largest_part(request: RoleRequest) -> tuple[float, float]:
    return request.num_gpus / request.num_parts, request.num_cpus / request.num_parts


def _first_with_room(left: Sequence[Sequence[float]], need: Sequence[float]) -> int | None:
    fitting = (
        index for index, free in enumerate(left) if all(have + 1e-9 >= want for have, want in zip(free, need, strict=True))
    )
    return next(fitting, None)


def _no_node(request: RoleRequest, number: int, need: Sequence[float], nodes: Sequence[Machine]) -> str:
    return (
        f"placement: {request.role} {number} of {request.count} needs {need[0]:g} CPUs and {need[1]:g} GPUs on one node, and "
        f"beside the larger processes none has so much; lower {_remedy(request, 'GPU' if request.num_gpus else 'CPU')}; nodes: "
        f"{', '.join(map(_described, nodes))}"
    )


def _described(node: Machine) -> str:
    return f"{node.name} ({node.num_cpus:g} CPUs, {node.num_gpus:g} GPUs)"


def _cpu_quota() -> float:
    """CPUs that the cgroups of this process allow, of version 2 or 1; infinite where they set no limit."""
    quotas = [float("inf")]
    for line in OWN_CGROUPS.read_text().splitlines() if OWN_CGROUPS.is_file() else []:
        _, controllers, own = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = CGROUPS / "cpu" if controllers else CGROUPS
        folder = mount / own.strip("/")
        for level in [folder, *folder.parents]:
            if level.is_relative_to(mount):
                quotas.append(_quota_of(level))
    return min(quotas)


def _quota_of(cgroup: Path) -> float:
    if (cgroup / "cpu.max").is_file():
        quota, period = (cgroup / "cpu.max").read_text().split()
    elif (cgroup / "cpu.cfs_quota_us").is_file():
        quota, period = (cgroup / "cpu.cfs_quota_us").read_text().strip(), (cgroup / "cpu.cfs_period_us").read_text()
    else:
        return float("inf")
    return float("inf") if quota in ("max", "-1") else int(quota) / int(period)


def check_shared_memory(needed_bytes: int, folder: Path) -> None:
    """Raise `ConfigError` where published weights do not fit into shared memory; a folder that does not exist is not used."""
    if not folder.is_dir():
        return
    stats = os.statvfs(folder)
    free_mib, needed_mib = stats.f_bavail * stats.f_frsize / BYTES_PER_MIB, needed_bytes / BYTES_PER_MIB
    if needed_mib > free_mib:
        raise ConfigError(
            f"{folder} has {free_mib:,.1f} MiB free, and the policy's weights need {needed_mib:,.1f} MiB there: a new version "
            "lies beside the one that it replaces; give the container more, for example with docker run --shm-size, or free some"
        )


def _remedy(request: RoleRequest, unit: str) -> str:
    """The settings, with their values, that make the role smaller."""
    section = request.setting.rpartition(".")[0]
    each = f"{section}.num_{unit.lower()}s (now {request.num_cpus if unit == 'CPU' else request.num_gpus:g})"
    return f"{request.setting} (now {request.count}) or {each}" if request.count > 1 else each
