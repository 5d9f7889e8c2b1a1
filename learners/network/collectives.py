"""Sums over the ranks of a process group; with one rank, nothing happens. All in place, all ranks get the same numbers.

And what FSDP does over gloo: `GlooAllGather` and `GlooReduceScatter`, without the copies of everything that gloo makes by itself.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed
from torch import Tensor

BUCKET_ELEMENTS = 16 * 2**20  # 64 MiB of float32: few calls, little extra memory
PIECE_BYTES = 16 * 2**20  # of what gloo copies at one time


class GlooAllGather:
    """What FSDP gathers parameters with (`FSDPModule.set_custom_all_gather`), piece by piece: gloo gathers into a copy."""

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: torch.distributed.ProcessGroup, async_op: bool = False
    ) -> None:
        """Every rank's input, one after the other, in the output, of which the own input may be a part."""
        assert not async_op, "nothing here asks FSDP for it"
        size = max(1, PIECE_BYTES // (output_tensor.element_size() * group.size()))
        pieces_of_ranks = zip(*(part.split(size) for part in output_tensor.chunk(group.size())), strict=True)
        for piece, outputs in zip(input_tensor.split(size), pieces_of_ranks, strict=True):
            torch.distributed.all_gather(list(outputs), piece, group=group)


class GlooReduceScatter:
    """What FSDP adds gradients up with (`FSDPModule.set_custom_reduce_scatter`), where they lie: gloo adds up in a copy."""

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: torch.distributed.ProcessGroup,
        op: torch.distributed.ReduceOp,
        async_op: bool = False,
    ) -> None:
        """The own part of the sum over the ranks' inputs. The input, which FSDP made for this call, is overwritten."""
        assert not async_op, "nothing here asks FSDP for it"
        torch.distributed.all_reduce(input_tensor, op=op, group=group)
        output_tensor.copy_(input_tensor.chunk(group.size())[group.rank()])


def sum_over_ranks(tensor: Tensor, world_size: int) -> None:
    """Replace a tensor by its sum over all ranks."""
    if world_size > 1:
        torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.SUM)


def numbers_of_rank_0(numbers: Sequence[int], *, rank: int, world_size: int, device: torch.device) -> list[int]:
    """Rank 0's numbers, on every rank; what the others pass counts for its length only."""
    shared = torch.tensor(numbers if rank == 0 else [0] * len(numbers), dtype=torch.int64, device=device)
    sum_over_ranks(shared, world_size)
    return shared.tolist()


def sum_gradients(parameters: Iterable[Tensor], world_size: int) -> None:
    """Replace gradients by their sums over all ranks, in buckets. A rank without a gradient counts as zero.

    Where no rank has a gradient there is none afterwards either, so that the optimizer leaves that parameter alone.
    """
    if world_size == 1:
        return
    for bucket in _buckets(_with_gradient_somewhere(list(parameters), world_size)):
        gradients = [torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in bucket]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        sum_over_ranks(flat, world_size)
        parts = flat.split([gradient.numel() for gradient in gradients])
        for tensor, part in zip(bucket, parts, strict=True):
            tensor.grad = part.view_as(tensor)


def _with_gradient_somewhere(parameters: Sequence[Tensor], world_size: int) -> list[Tensor]:
    """Those that have a gradient on some rank; the same list on all ranks."""
    num_ranks = torch.tensor([float(parameter.grad is not None) for parameter in parameters], device=parameters[0].device)
    sum_over_ranks(num_ranks, world_size)
    return [parameter for parameter, number in zip(parameters, num_ranks.tolist(), strict=True) if number > 0]


def _buckets(parameters: Iterable[Tensor]) -> list[list[Tensor]]:
    buckets: list[list[Tensor]] = []
    size = BUCKET_ELEMENTS
    for parameter in parameters:
        if size + parameter.numel() > BUCKET_ELEMENTS:
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += parameter.numel()
    return buckets
