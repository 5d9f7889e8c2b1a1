"""The engine's end of weights over a device: vLLM's own `nccl` and `ipc` engines, which check what has arrived.

vLLM loads this module in its worker processes, by the names that `weight_loading.register` gives them. Written against the API
of vLLM 0.32. It has run on tensors of a CPU only, never on a GPU.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine, IPCWeightTransferUpdateInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

from actors.device_wire import BitChecksum, rebuild_arguments


class ArrivalCheck:
    """Mixed into an engine of vLLM that takes all tensors of an update in one call."""

    model: Any

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Raises `ValueError` where the tensors that were received are not those that were sent."""
        sent = update_info["checksum"]
        self._arrived = BitChecksum()
        super().update_weights({key: value for key, value in update_info.items() if key != "checksum"})  # type: ignore[misc]
        arrived = self._arrived.hexdigest()
        if arrived != sent:
            raise ValueError(f"weights of checksum {sent} were sent, but {arrived} arrived")

    def receive_weights(self, update_info: Any) -> None:
        model, self.model = self.model, _WatchedModel(self.model, self._arrived)
        try:
            super().receive_weights(update_info)  # type: ignore[misc]
        finally:
            self.model = model


class NCCLReceiver(ArrivalCheck, NCCLWeightTransferEngine):
    """Tensors by broadcast."""


class IPCReceiver(ArrivalCheck, IPCWeightTransferEngine):
    """Tensors in memory of a device that both sides use. Handles are plain: see `actors.device_wire`."""

    def parse_update_info(self, update_dict: dict[str, Any]) -> IPCWeightTransferUpdateInfo:
        handles = [
            {device: rebuild_arguments(plain) for device, plain in by_device.items()} for by_device in update_dict["ipc_handles"]
        ]
        return super().parse_update_info(update_dict | {"ipc_handles": handles})


class _WatchedModel:
    """The part of a model that an engine uses while it receives."""

    def __init__(self, model: torch.nn.Module, arrived: BitChecksum) -> None:
        self._model, self._arrived = model, arrived

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> object:
        return self._model.load_weights(self._arrived.watch(weights))
