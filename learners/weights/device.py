"""Weights from the learner's device to the generators', by vLLM's own `nccl` and `ipc` trainer engines.

Written against the API of vLLM 0.32. It has run against recording fakes only, never on a GPU. Imports vLLM, so it is imported
where a run asks for these backends.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray
import torch
from torch import Tensor
from transformers import PreTrainedModel
from vllm.distributed.weight_transfer import ParamMeta, WeightSource, WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.base import TrainerInitInfo
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
from vllm.utils.network_utils import get_ip, get_open_port

from cluster.types import PublishedWeights
from learners.weights.file import untied_tensors
from learners.weights.link import GeneratorLink

INTEGER_OF_SIZE = {2: torch.int16, 4: torch.int32}  # by bytes of a floating-point number


class WeightSender:
    """One rank's end of the link; every rank makes one and calls `send`, rank 0 transmits.

    Every rank holds the whole policy. Under `ipc` each hands out handles of its own device, for the workers that share it, and
    a second copy of the policy in the generators' type exists while it is sent.
    """

    def __init__(self, policy: PreTrainedModel, link: GeneratorLink, *, dtype: torch.dtype, rank: int) -> None:
        self._source = PolicySource(policy, dtype)
        init_info, self._client = _ENDPOINTS[link.backend](link, rank)
        # A mismatch found later would leave one side waiting in a collective that the other never enters.
        self._client.check_tensors({meta.name: meta.shape for meta in self._source.metadata()})
        self._engine = WeightTransferTrainerFactory.trainer_init(init_info, client=self._client, source=self._source)

    def send(self, *, policy_version: int) -> PublishedWeights:
        """Returns when all generators sample from the policy as it is now."""
        weights = PublishedWeights(policy_version=policy_version, path="", checksum=bit_checksum(self._source))
        self._client.announce(weights)
        self._engine.send_weights()
        return weights


class PolicySource(WeightSource):
    """Every parameter once, under its Hugging Face name, in the generators' type, on the learner's device."""

    def __init__(self, policy: PreTrainedModel, dtype: torch.dtype) -> None:
        self._policy = policy
        self._dtype = dtype

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, self._dtype, tuple(tensor.shape)) for name, tensor in untied_tensors(self._policy).items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in untied_tensors(self._policy).items():
            yield name, tensor.detach().to(self._dtype)


class GeneratorClient:
    """vLLM's `VLLMWeightSyncClient` over actors of `DeviceFedGenerator`: each call goes to all of them and waits for all.

    vLLM's own `RayVLLMWeightSyncClient` gives every actor the same ranks, and its engines finish an update without a version.
    """

    def __init__(self, generators: tuple[Any, ...]) -> None:
        self._generators = generators
        self._announced: PublishedWeights

    def check_tensors(self, shapes: dict[str, tuple[int, ...]]) -> None:
        ray.get([generator.check_tensors.remote(shapes) for generator in self._generators])

    def announce(self, weights: PublishedWeights) -> None:
        """Say what the next update carries."""
        self._announced = weights

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        ray.get([generator.init_weight_transfer_engine.remote(init_info) for generator in self._generators])

    def start_weight_update(self) -> None:
        ray.get([generator.start_weight_update.remote() for generator in self._generators])

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        ray.get([generator.update_weights.remote(update_info) for generator in self._generators])

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """The announced weights say more than `weight_version`, which vLLM's engines leave out."""
        ray.get([generator.finish_weight_update.remote(self._announced) for generator in self._generators])


class RankedGeneratorClient(GeneratorClient):
    """Gives the workers of each generator ranks of their own in one process group: vLLM numbers them from 0 in every engine."""

    def __init__(self, generators: tuple[Any, ...], *, workers_per_generator: int) -> None:
        super().__init__(generators)
        self._workers_per_generator = workers_per_generator

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        first = init_info["rank_offset"]
        ray.get(
            [
                generator.init_weight_transfer_engine.remote(
                    init_info | {"rank_offset": first + index * self._workers_per_generator}
                )
                for index, generator in enumerate(self._generators)
            ]
        )


def bit_checksum(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 hex over names, types, shapes and the sum of each tensor's numbers read as integers, which a device adds up.

    It names a publication; a receiver holds fused and split tensors and cannot compute it.
    """
    descriptions, sums = [], []
    for name, tensor in tensors:
        descriptions.append((name, str(tensor.dtype), tuple(tensor.shape)))
        sums.append(tensor.contiguous().view(INTEGER_OF_SIZE[tensor.itemsize]).sum(dtype=torch.int64))
    return hashlib.sha256(repr((descriptions, torch.stack(sums).tolist())).encode()).hexdigest()


def _nccl_endpoint(link: GeneratorLink, rank: int) -> tuple[TrainerInitInfo, GeneratorClient]:
    """One process group: this learner's rank 0, then the workers of every generator."""
    init_info = NCCLTrainerInitInfo(
        master_address=get_ip(),
        master_port=get_open_port(),
        world_size=1 + len(link.generators) * link.workers_per_generator,
        rank=rank,
    )
    return init_info, RankedGeneratorClient(link.generators, workers_per_generator=link.workers_per_generator)


def _ipc_endpoint(link: GeneratorLink, rank: int) -> tuple[TrainerInitInfo, GeneratorClient]:
    """No process group: workers map the memory of the rank whose device they share."""
    return IPCTrainerInitInfo(rank=rank), GeneratorClient(link.generators)


_ENDPOINTS: dict[str, Callable[[GeneratorLink, int], tuple[TrainerInitInfo, GeneratorClient]]] = {
    "nccl": _nccl_endpoint,
    "ipc": _ipc_endpoint,
}
