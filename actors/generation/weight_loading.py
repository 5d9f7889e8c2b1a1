"""The `shm` weight-transfer backend of vLLM: new weights come as one safetensors file in shared memory of the host.

`register` also names the backends of `device_receiving`, which is imported only where an engine uses one.

vLLM loads this module in its engine and worker processes, through the entry point `rayward_shm` of the group
`vllm.general_plugins`; nothing else imports it, for it needs vLLM at import.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, UnquantizedEmbeddingMethod
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

SHM_BACKEND = "shm"
RECEIVERS = {"rayward_nccl": "NCCLReceiver", "rayward_ipc": "IPCReceiver"}  # by vLLM's name of the backend


@functools.cache  # vLLM may load a plugin twice, and refuses a second registration
def register() -> None:
    """Make our backends known to vLLM."""
    WeightTransferEngineFactory.register_engine(SHM_BACKEND, SharedMemoryWeightTransferEngine)
    for backend, receiver in RECEIVERS.items():
        WeightTransferEngineFactory.register_engine(backend, "actors.generation.device_receiving", receiver)


@dataclass
class SharedMemoryInitInfo(WeightTransferInitInfo):
    """There is nothing to agree on."""


@dataclass
class SharedMemoryUpdateInfo(WeightTransferUpdateInfo):
    """One update."""

    path: str  # safetensors, Hugging Face names, every parameter of the model, tied ones once


class SharedMemoryWeightTransferEngine(WeightTransferEngine[SharedMemoryInitInfo, SharedMemoryUpdateInfo]):
    """Each worker maps the file and loads its own share of every tensor."""

    init_info_cls = SharedMemoryInitInfo
    update_info_cls = SharedMemoryUpdateInfo

    def init_transfer_engine(self, init_info: SharedMemoryInitInfo) -> None:
        """Nothing to connect."""

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, str]) -> None:
        """As the base class does, but for its `torch.accelerator.synchronize()`, which fails where there is no accelerator."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: SharedMemoryUpdateInfo) -> None:
        self.model.load_weights(_tensors(update_info.path))

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        _repack_heads(self.model)

    def shutdown(self) -> None:
        """Nothing is held between updates."""


def _tensors(path: str) -> Iterator[tuple[str, torch.Tensor]]:
    with safe_open(path, framework="pt", device="cpu") as file:
        for name in file.keys():  # noqa: SIM118 - a safetensors file is not a mapping
            yield name, file.get_tensor(name)


def _repack_heads(model: torch.nn.Module) -> None:
    """A tied head gets no weights of its own, so the reload leaves the packed copy that a CPU multiplies with as it was."""
    for module in model.modules():
        if isinstance(module, ParallelLMHead) and isinstance(module.quant_method, UnquantizedEmbeddingMethod):
            module.quant_method.process_weights_after_loading(module)
