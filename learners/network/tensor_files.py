"""Tensors in safetensors files: of which only the rows that are asked for are read, and which are written one at a time.

Source of the format: https://huggingface.co/docs/safetensors
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import safe_open
from torch import Tensor

from learners.network.sharding import GatheredTensors, Shard

DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
HEADER_ALIGNMENT = 8  # bytes, so that numbers lie where processors like them


class TensorFiles:
    """One file, or several. A tensor that is in more than one lies there in parts, row after row in the order of the files.

    A context manager. Raises `OSError` and `SafetensorError` where a file is none.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._files = ExitStack()
        self._holders: dict[str, list[Any]] = {}

    def __enter__(self) -> Self:
        with self._files:
            for path in self._paths:
                file = self._files.enter_context(safe_open(path, framework="pt"))
                for name in file.keys():  # noqa: SIM118 - it is no mapping
                    self._holders.setdefault(name, []).append(file)
            self._files = self._files.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._files.close()

    def names(self) -> list[str]:
        return list(self._holders)

    def __contains__(self, name: str) -> bool:
        return name in self._holders

    def tensor(self, name: str) -> Tensor:
        """All of it."""
        parts = [file.get_tensor(name) for file in self._holders[name]]
        return torch.cat(parts) if len(parts) > 1 and parts[0].ndim else parts[0]

    def part(self, name: str, shard: Shard) -> Tensor:
        """The rows of one shard; a number without dimensions is the same in every one."""
        slices = [file.get_slice(name) for file in self._holders[name]]
        if shard.count == 1 or not slices[0].get_shape():
            return self.tensor(name)
        wanted = shard.rows(sum(each.get_shape()[0] for each in slices))
        found, first = [], 0  # `first`: the row of the whole that this file begins with
        for each in slices:
            num_rows = each.get_shape()[0]
            start, stop = max(wanted.start - first, 0), min(wanted.stop - first, num_rows)
            if start < stop:
                found.append(each[start:stop])
            first += num_rows
        return torch.cat(found or [slices[0][0:0]])


def write_tensors(path: Path, tensors: GatheredTensors, metadata: Mapping[str, str] | None = None) -> None:
    """One safetensors file; no more than one of the tensors is whole in memory. Raises `OSError`."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, like in tensors.like.items():
        start, end = end, end + like.numel() * like.element_size()
        header[name] = {"dtype": DTYPE_NAMES[like.dtype], "shape": list(like.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // HEADER_ALIGNMENT) * HEADER_ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values:
            file.write(tensor.reshape(-1).view(torch.uint8).numpy())
