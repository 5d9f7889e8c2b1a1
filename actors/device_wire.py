"""What a learner and an engine's worker agree on about weights that travel over a device: checksums and handles of memory.

`torch` alone is imported, by both sides. A handle is what `torch.multiprocessing` makes of a tensor in device memory. It holds
Python types, which vLLM passes to its processes only with VLLM_ALLOW_INSECURE_SERIALIZATION, that is, with pickle for everything.
So they travel as lists of numbers, text and bytes.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.storage import TypedStorage

INTEGER_OF_SIZE = {2: torch.int16, 4: torch.int32}  # by bytes of a floating-point number
TENSOR_CLASS, SIZE, STRIDE, STORAGE_CLASS, DTYPE = 0, 1, 2, 4, 5  # places in the arguments of `rebuild_cuda_tensor`
NUM_ARGUMENTS = 15


class BitChecksum:
    """sha256 hex over names, types, shapes and the sum of each tensor's numbers read as integers, which a device adds up."""

    def __init__(self) -> None:
        self._descriptions: list[tuple[str, str, tuple[int, ...]]] = []
        self._sums: list[Tensor] = []

    def watch(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors, each counted before it is handed on."""
        for name, tensor in tensors:
            self._descriptions.append((name, str(tensor.dtype), tuple(tensor.shape)))
            self._sums.append(tensor.contiguous().view(INTEGER_OF_SIZE[tensor.itemsize]).sum(dtype=torch.int64))
            yield name, tensor

    def hexdigest(self) -> str:
        """Of all that was watched; the device's streams must have come to an end."""
        sums = torch.stack(self._sums).tolist() if self._sums else []
        return hashlib.sha256(repr((self._descriptions, sums)).encode()).hexdigest()


def bit_checksum(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """`BitChecksum` of tensors that lie ready."""
    checksum = BitChecksum()
    for _ in checksum.watch(tensors):
        pass
    return checksum.hexdigest()


def plain_handle(arguments: tuple[Any, ...]) -> list[Any]:
    """The arguments of `rebuild_cuda_tensor` without Python types."""
    if len(arguments) != NUM_ARGUMENTS or arguments[TENSOR_CLASS] is not Tensor or arguments[STORAGE_CLASS] is not TypedStorage:
        raise TypeError(f"a handle must be {NUM_ARGUMENTS} values of a plain tensor, not {arguments[:6]}; check torch's version")
    plain = list(arguments)
    plain[TENSOR_CLASS] = plain[STORAGE_CLASS] = None
    plain[SIZE], plain[STRIDE] = list(arguments[SIZE]), list(arguments[STRIDE])
    plain[DTYPE] = str(arguments[DTYPE]).removeprefix("torch.")
    return plain


def rebuild_arguments(plain: list[Any]) -> tuple[Any, ...]:
    """The inverse of `plain_handle`."""
    arguments = list(plain)
    arguments[TENSOR_CLASS], arguments[STORAGE_CLASS] = Tensor, TypedStorage
    arguments[SIZE], arguments[STRIDE] = torch.Size(plain[SIZE]), tuple(plain[STRIDE])
    arguments[DTYPE] = getattr(torch, plain[DTYPE])
    return tuple(arguments)
