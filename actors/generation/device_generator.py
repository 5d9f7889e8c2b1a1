"""A vLLM generator whose new weights come over a device, by vLLM's own `nccl` and `ipc` weight-transfer backends.

The learner's rank 0 calls it during `LearnerHandle.publish`; `load_weights` then only confirms what arrived. Written against
the API of vLLM 0.32. It has run against recording fakes only, never on a GPU.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from actors.config import GeneratorConfig
from actors.generation.generator import HeldWeights
from actors.generation.vllm_generator import TensorShapes, VLLMGenerator
from cluster.errors import WeightMismatchError
from cluster.types import PublishedWeights


class DeviceFedGenerator(VLLMGenerator):
    """Implements `Generator`. To be used as an async Ray actor.

    One update is `start_weight_update`, any number of `update_weights`, `finish_weight_update`. A failure on the way leaves
    weights that nobody knows, so the engine is stopped and the actor must be replaced.
    """

    def __init__(self, model_path: str, config: GeneratorConfig) -> None:
        if config.weight_transfer == "ipc":
            # A device handle holds Python types, which vLLM passes to its own processes pickled or not at all.
            os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
        super().__init__(model_path, config)

    async def check_tensors(self, shapes: TensorShapes) -> None:
        """Raise `WeightMismatchError` unless the learner's tensors are this model's."""
        self._check_shapes(shapes, "the learner's policy")

    async def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Connect to the learner. `init_info`: what vLLM's trainer engine says to a worker."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self._running_engine().init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info))

    async def start_weight_update(self) -> None:
        """Running requests finish on the old weights; later ones wait."""
        async with self._stopped_on_failure():
            engine = self._running_engine()
            await engine.pause_generation(mode="wait", clear_cache=True)  # the prefix cache belongs to the old weights
            await engine.start_weight_update()

    async def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive tensors; returns when they are in the model."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        async with self._stopped_on_failure():
            await self._running_engine().update_weights(WeightTransferUpdateRequest(update_info=update_info))

    async def finish_weight_update(self, weights: PublishedWeights) -> None:
        """Sample from the new weights from here on."""
        async with self._stopped_on_failure():
            engine = self._running_engine()
            await engine.finish_weight_update(weight_version=str(weights.policy_version))
            self._checksum = weights.checksum
            await engine.resume_generation()

    async def load_weights(self, weights: PublishedWeights) -> int:
        """Confirm that these weights have arrived; returns their policy version."""
        held = await self.held_weights()
        if held != HeldWeights(policy_version=weights.policy_version, checksum=weights.checksum):
            raise WeightMismatchError(
                f"version {weights.policy_version} ({weights.checksum}) was published, but {held} came over the device; "
                "restart the run"
            )
        return held.policy_version

    @asynccontextmanager
    async def _stopped_on_failure(self) -> AsyncIterator[None]:
        try:
            yield
        except BaseException:
            await self.shutdown()
            raise
