"""Weights from the learner's device to the generators', by vLLM's own `nccl` and `ipc` trainer engines.

Written against the API of vLLM 0.32. It has run against recording fakes only, never on a GPU. Imports vLLM, so it is imported
where a run asks for these backends.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import ray
import torch
from ray import ObjectRef
from ray.exceptions import RayError, RayTaskError
from torch import Tensor
from transformers import PreTrainedModel
from vllm.distributed.weight_transfer import ParamMeta, WeightSource, WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.base import TrainerInitInfo, TrainerWeightTransferEngine
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine
from vllm.utils.network_utils import get_ip, get_open_port

from actors.device_wire import bit_checksum, plain_handle
from cluster.errors import ActorLostError, RaywardError
from cluster.types import SentWeights
from learners.weights.file import untied_tensors
from learners.weights.link import GeneratorLink

LOST = object()  # a generator
LOSS_GRACE_S = 10.0  # for the others of a process group to leave a broadcast that has lost a member


class WeightSender:
    """One rank's end of a link; every rank makes one and calls `send`, rank 0 transmits.

    Every rank holds the whole policy. Under `ipc` each hands out handles of its own device, for the workers that share it, and
    a second copy of the policy in the generators' type exists while it is sent.

    A generator that is lost on the way is ended, for its pool to replace, and the others go on. It is no error of the learner.
    """

    def __init__(self, policy: PreTrainedModel, link: GeneratorLink, *, dtype: torch.dtype, rank: int) -> None:
        self.epoch = link.epoch
        self._source = PolicySource(policy, dtype)
        self._engine: TrainerWeightTransferEngine | None = None
        if not link.generators:  # all are lost; those that come back get links of their own
            return
        client_class, init_info = _ENDPOINTS[link.backend]
        self._client = client_class(link)
        # A mismatch found later would leave one side waiting in a collective that the other never enters.
        self._client.check_tensors({meta.name: meta.shape for meta in self._source.metadata()})
        self._engine = WeightTransferTrainerFactory.trainer_init(
            init_info(self._client, rank), client=self._client, source=self._source
        )
        if isinstance(self._engine, NCCLTrainerWeightTransferEngine) and self._engine.model_update_group is not None:
            self._client.end_broadcast = self._engine.model_update_group.destroy

    def send(self, *, policy_version: int) -> SentWeights:
        """Returns when all generators that are left sample from the policy as it is now."""
        weights = SentWeights(policy_version=policy_version, checksum=bit_checksum(self._source))
        if self._engine is not None:
            self._client.announce(weights)
            self._engine.send_weights()
        return weights

    def close(self) -> None:
        """Leave the link."""
        if self._engine is not None:
            self._engine.shutdown()


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

    vLLM's own `RayVLLMWeightSyncClient` gives every actor the same ranks, its engines finish an update without a version, and
    one dead actor is the end of it.
    """

    def __init__(self, link: GeneratorLink) -> None:
        self.generators = list(link.generators)  # without those that were lost
        self.num_workers: dict[int, int] = {}  # devices of each engine, by the identity of its handle
        self.end_broadcast: Callable[[], None] = lambda: None
        self._epoch, self._deadline_s = link.epoch, link.deadline_s
        self._announced: SentWeights

    def check_tensors(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self.num_workers = self._ask_all(lambda generator: generator.check_tensors.remote(shapes))

    def announce(self, weights: SentWeights) -> None:
        """Say what the next update carries."""
        self._announced = weights

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._ask_all(lambda generator: generator.init_weight_transfer_engine.remote(self._epoch, init_info))

    def start_weight_update(self) -> None:
        self._ask_all(lambda generator: generator.start_weight_update.remote(self._epoch))

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """The workers compare what arrives with the announced checksum."""
        whole = update_info | {"checksum": self._announced.checksum}
        self._ask_all(lambda generator: generator.update_weights.remote(self._epoch, whole))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """The announced weights say more than `weight_version`, which vLLM's engines leave out."""
        self._ask_all(lambda generator: generator.finish_weight_update.remote(self._epoch, self._announced))

    def _ask_all(self, ask: Callable[[Any], ObjectRef]) -> dict[int, Any]:
        """What those answered that are left, by the identity of their handles."""
        answers: dict[int, Any] = {}
        running = {ask(generator): generator for generator in self.generators}
        timeout_s = self._deadline_s
        while running:
            ready, _ = ray.wait(list(running), timeout=timeout_s)
            outcomes = {ref: _outcome(ref) for ref in ready}
            answers |= {id(running[ref]): answer for ref, answer in outcomes.items()}
            lost = [generator for ref, generator in running.items() if not ready or outcomes.get(ref) is LOST]
            self._lose(lost)
            if not ready:
                break
            running = {ref: generator for ref, generator in running.items() if ref not in ready}
            if lost:
                timeout_s = self._after_loss(timeout_s)
        return answers

    def _lose(self, generators: list[Any]) -> None:
        for generator in generators:
            self.generators.remove(generator)
            ray.kill(generator)  # it may hang, or hold weights that nobody knows

    def _after_loss(self, timeout_s: float) -> float:
        """How long to wait for the others."""
        return timeout_s


class RankedGeneratorClient(GeneratorClient):
    """All workers of all generators are in one process group, with ranks of their own: vLLM numbers them from 0 in every engine.

    A broadcast that has lost a member never ends by itself.
    """

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        workers = [self.num_workers[id(generator)] for generator in self.generators]
        firsts = itertools.accumulate(workers, initial=init_info["rank_offset"])
        offsets = {id(generator): first for generator, first in zip(self.generators, firsts, strict=False)}
        self._ask_all(
            lambda generator: generator.init_weight_transfer_engine.remote(
                self._epoch, init_info | {"rank_offset": offsets[id(generator)]}
            )
        )

    def start_weight_update(self) -> None:
        """Where one is lost, the others have begun what no tensor can reach any more."""
        num_generators = len(self.generators)
        super().start_weight_update()
        if len(self.generators) < num_generators:
            self._lose(list(self.generators))

    def _after_loss(self, timeout_s: float) -> float:
        self.end_broadcast()
        return LOSS_GRACE_S


class HandleClient(GeneratorClient):
    """Sends handles of memory in a form that vLLM passes on to its own processes."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        handles = [
            {device: plain_handle(arguments) for device, arguments in by_device.items()}
            for by_device in update_info["ipc_handles"]
        ]
        super().update_weights(
            {"names": update_info["names"], "dtype_names": update_info["dtype_names"], "shapes": update_info["shapes"]}
            | {"ipc_handles": handles}
        )


def _outcome(ref: ObjectRef) -> Any:
    """`LOST` where the generator is; an error that it raised to keep its weights is raised here."""
    try:
        return ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, RaywardError) and not isinstance(error.cause, ActorLostError):
            raise error.cause from error
        return LOST  # whatever fails inside an update stops the engine
    except RayError:
        return LOST


def _nccl_init_info(client: GeneratorClient, rank: int) -> TrainerInitInfo:
    """One process group: this learner's rank 0, then the workers of every generator."""
    return NCCLTrainerInitInfo(
        master_address=get_ip(),
        master_port=get_open_port(),
        world_size=1 + sum(client.num_workers[id(generator)] for generator in client.generators),
        rank=rank,
    )


def _ipc_init_info(client: GeneratorClient, rank: int) -> TrainerInitInfo:
    """No process group: workers map the memory of the rank whose device they share."""
    return IPCTrainerInitInfo(rank=rank)


_ENDPOINTS: dict[str, tuple[type[GeneratorClient], Callable[[GeneratorClient, int], TrainerInitInfo]]] = {
    "nccl": (RankedGeneratorClient, _nccl_init_info),
    "ipc": (HandleClient, _ipc_init_info),
}
