"""A vLLM generator whose new weights come over a device, by vLLM's own `nccl` and `ipc` weight-transfer backends.

The learner's rank 0 calls it during `PolicyLearnerHandle.publish`; `load_weights` then only confirms what arrived. Written
against the API of vLLM 0.32. It has run against recording fakes only, never on a GPU.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from actors.config import GeneratorConfig, RunningRequests
from actors.generation.generator import HeldWeights
from actors.generation.vllm_generator import TensorShapes, VLLMGenerator
from cluster.errors import ActorLostError, StaleLinkError
from cluster.types import PublishedWeights, SentWeights


class DeviceFedGenerator(VLLMGenerator):
    """Implements `Generator`. To be used as an async Ray actor.

    A link to the learner has an epoch, and only calls of the newest one are obeyed. One update is `start_weight_update`, any
    number of `update_weights`, `finish_weight_update`. A failure on the way, or a new link before its end, leaves weights that
    nobody knows. Then the engine is stopped, and the actor must be replaced.
    """

    def __init__(self, model_path: str, config: GeneratorConfig, running_requests: RunningRequests = "finish") -> None:
        super().__init__(model_path, config, running_requests)
        self._epoch = 0  # of the link; 0 before the first
        self._is_updating = False

    async def check_tensors(self, shapes: TensorShapes) -> int:
        """Devices of this engine. Raises `WeightMismatchError` unless the learner's tensors are this model's."""
        self._check_shapes(shapes, "the learner's policy")
        return self._config.tensor_parallel_size

    async def init_weight_transfer_engine(self, epoch: int, init_info: dict[str, Any]) -> None:
        """Connect to the learner, and leave the link before. `init_info`: what vLLM's trainer engine says to a worker."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        if epoch <= self._epoch:
            raise StaleLinkError(f"link {epoch} to the learner is older than link {self._epoch}; make a new one")
        is_first, self._epoch = self._epoch == 0, epoch
        async with self._stopped_on_failure():
            if self._is_updating:
                raise ActorLostError("the learner was lost in the midst of an update, so nobody knows this engine's weights")
            if not is_first:
                await self._running_engine().shutdown_weight_transfer_engine()  # its group has a member that is gone
            await self._running_engine().init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info))

    async def start_weight_update(self, epoch: int) -> None:
        """Running requests finish on the old weights, or rest; later ones wait."""
        self._check_epoch(epoch)
        self._is_updating = True
        async with self._stopped_on_failure():
            engine = self._running_engine()
            await self._pause(engine)
            await engine.start_weight_update()

    async def update_weights(self, epoch: int, update_info: dict[str, Any]) -> None:
        """Receive tensors; returns when they are in the model, and are those that were sent."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        self._check_epoch(epoch)
        async with self._stopped_on_failure():
            await self._running_engine().update_weights(WeightTransferUpdateRequest(update_info=update_info))

    async def finish_weight_update(self, epoch: int, weights: SentWeights) -> None:
        """Sample from the new weights from here on."""
        self._check_epoch(epoch)
        async with self._stopped_on_failure():
            engine = self._running_engine()
            await engine.finish_weight_update(weight_version=str(weights.policy_version))
            self._checksum = weights.checksum
            await engine.resume_generation()
        self._is_updating = False

    async def load_weights(self, weights: PublishedWeights) -> int:
        """Confirm that these weights have arrived; returns their policy version."""
        held = await self.held_weights()
        if held != HeldWeights(policy_version=weights.policy_version, checksum=weights.checksum):
            raise ActorLostError(
                f"version {weights.policy_version} ({weights.checksum}) was published, but {held} came over the device"
            )
        return held.policy_version

    def _check_epoch(self, epoch: int) -> None:
        if epoch != self._epoch:
            raise StaleLinkError(f"link {epoch} to the learner was replaced by link {self._epoch}; make a new one")

    @asynccontextmanager
    async def _stopped_on_failure(self) -> AsyncIterator[None]:
        try:
            yield
        except BaseException:
            await self.shutdown()
            raise
