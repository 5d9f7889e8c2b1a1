"""A learner whose parameters lie in parts on several ranks: FSDP2 over one mesh of ranks, with gloo or NCCL.

What is sharded: the rows of every parameter, and with them those of its gradient and moments. Under sharding=full each rank holds
one part in all; under hybrid one in `shard_group_size`, and the groups hold the same. A decoder layer is gathered before it runs,
forwards and backwards, and dropped after. What lies outside the layers (embeddings, output matrix, final norm, heads) belongs to
the root, which is gathered for as long as one of its calls runs: whatever uses these must be called through the root. A backward
pass is done with them when it comes to the layers, and drops them there, for the gradients of a large vocabulary take their room.

How gradients are reduced: losses divide by counts of the whole step, so a gradient is the plain sum over all ranks. Each backward
pass sums layer by layer and adds to what the pass before it left. So all ranks run equally many passes: one with fewer packs of
rows runs some again that count for nothing.

Parts may be offloaded: they then lie in host memory, where the optimizer steps, and a layer's are copied to the device before it
is gathered. Gradients follow them.
"""

import ctypes
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from cluster.errors import ConfigError
from learners.network.collectives import GlooAllGather, GlooReduceScatter
from learners.settings.training import Offload, WorkerConfig

M_MMAP_THRESHOLD = -3  # of glibc's mallopt
MMAP_THRESHOLD_BYTES = 128 * 1024  # what glibc starts with


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Which part of every sharded tensor a rank holds. Produced by `shard_of`, consumed by whoever reads or writes parts."""

    index: int
    count: int

    def rows(self, num_rows: int) -> slice:
        """Of a tensor with so many: parts of equal size in order, the last ones smaller or empty."""
        size = -(-num_rows // self.count)
        return slice(min(self.index * size, num_rows), min((self.index + 1) * size, num_rows))


WHOLE = Shard(index=0, count=1)


def shard_of(workers: WorkerConfig, rank: int) -> Shard:
    """The part of a rank. The first `count` ranks hold one copy between them, the next another."""
    return Shard(index=rank % workers.num_shards, count=workers.num_shards)


def rank_mesh(workers: WorkerConfig, device: torch.device) -> DeviceMesh:
    """All ranks, as copies x shards. Call it on every rank."""
    num_copies = workers.num_workers // workers.num_shards
    if num_copies == 1:
        return init_device_mesh(device.type, (workers.num_shards,), mesh_dim_names=("shard",))
    return init_device_mesh(device.type, (num_copies, workers.num_shards), mesh_dim_names=("copy", "shard"))


def shard_network(
    root: nn.Module,
    trunks: Sequence[PreTrainedModel],
    mesh: DeviceMesh,
    *,
    compute_dtype: torch.dtype,
    offload: Offload,
    calls: Sequence[str] = (),
) -> None:
    """Shard a network whose parameters are on the meta device, and allocate this rank's part, not yet filled.

    `trunks` are those inside `root`; `calls` are the methods besides `forward` that use parameters. `offload`: where parts lie
    while they are not computed with, the mesh's device or the CPU.
    """
    if mesh.device_type == "cpu":
        _return_freed_memory()
    buffers = dict(root.named_buffers())
    place = _place(mesh, offload)
    for trunk in trunks:
        for layer in _layers(trunk):
            fully_shard(layer, mesh=mesh, mp_policy=_precision(compute_dtype), offload_policy=place)
    fully_shard(root, mesh=mesh, reshard_after_forward=True, offload_policy=place)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum, not even by 1
            if mesh.device_type == "cpu":
                module.set_custom_all_gather(GlooAllGather())
                module.set_custom_reduce_scatter(GlooReduceScatter())
    for call in calls:
        register_fsdp_forward_method(root, call)
    first = trunks[0]  # it runs first, so its backward pass begins when that of all others has ended
    if _needs_embeddings_only(first):
        *_, last_layer = _layers(first)
        last_layer.register_full_backward_pre_hook(lambda layer, gradients: root.reshard())
    root.to_empty(device=mesh.device_type if offload == "none" else "cpu")
    for name, buffer in buffers.items():  # they were computed, and are whole on every rank, where it computes
        owner, _, own_name = name.rpartition(".")
        setattr(root.get_submodule(owner), own_name, buffer.to(mesh.device_type))


def local_part(tensor: Tensor) -> Tensor:
    """This rank's rows of a sharded tensor, sharing its memory; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_parts(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: local_part(tensor) for name, tensor in tensors.items()}


def whole(tensor: Tensor) -> Tensor:
    """All rows of a sharded tensor, on every rank; any other tensor as it is. Call it on every rank."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class GatheredTensors:
    """Produced by `gathering`, consumed by `write_tensors`."""

    like: Mapping[str, Tensor]  # their names, shapes and types
    values: Iterator[Tensor]  # all rows of each, in the same order, on the CPU


@contextmanager
def gathering(tensors: Mapping[str, Tensor]) -> Iterator[GatheredTensors]:
    """Sharded tensors made whole one after the other, on every rank. Call it on every rank.

    The others wait for a rank that stops half-way, for want of disk space, say. So what is left is gathered on the way out.
    """
    values = (whole(tensor).to("cpu").contiguous() for tensor in tensors.values())
    try:
        yield GatheredTensors(like=tensors, values=values)
    finally:
        for _ in values:
            pass


def part_like(local: Tensor, whole_like: Tensor) -> Tensor:
    """This rank's rows as a tensor that is sharded as `whole_like` is, and lies where it does.

    Where parts are offloaded that is not the mesh's device, to which `DTensor.from_local` would move them.
    """
    if not isinstance(whole_like, DTensor):
        return local
    part = torch.empty_like(whole_like, dtype=local.dtype, requires_grad=False)
    local_part(part).copy_(local)
    return part


def _return_freed_memory() -> None:
    """Let what is freed go back to the system at once, for layers come and go all the time.

    Left alone, glibc keeps ever larger blocks, up to 32 MiB, in a heap that falls to pieces: a rank of SmolLM2-135M in four parts
    came to hold more than one with all of it.
    """
    with suppress(AttributeError):  # other C libraries have none
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)


def _layers(trunk: PreTrainedModel) -> Iterable[nn.Module]:
    layers = dict(trunk.named_children()).get("layers")
    if layers is None:
        raise ConfigError(f"sharding deals decoder layers out, but {type(trunk).__name__} has no `layers`; set sharding=none")
    return layers


def _needs_embeddings_only(trunk: PreTrainedModel) -> bool:
    """Whether nothing below the layers computes with parameters but a look-up, whose backward pass needs none of them.

    Known of Llama and its relatives by the names of their parts.
    """
    with_parameters = {name for name, part in trunk.named_children() if any(True for _ in part.parameters())}
    return with_parameters == {"embed_tokens", "layers", "norm"}


def _place(mesh: DeviceMesh, offload: Offload) -> OffloadPolicy:
    """Pinned, so that copies run beside computations; there is no such memory without a device."""
    return OffloadPolicy() if offload == "none" else CPUOffloadPolicy(pin_memory=mesh.device_type != "cpu")


def _precision(compute_dtype: torch.dtype) -> MixedPrecisionPolicy:
    """Layers are gathered in the type of their products: autocast would keep a copy of each in it until the pass is over."""
    if compute_dtype == torch.float32:
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
