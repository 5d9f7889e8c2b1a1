"""Low-rank adapters as folders in shared memory, for generators to load."""

import os
import shutil
from pathlib import Path

from transformers import PreTrainedModel

from cluster.storage.weight_file import seal_weights
from cluster.types import AdapterFolder, AdapterProbe
from learners.network.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS, file_tensors, write_adapter
from learners.network.sharding import gathering


class AdapterPublisher:
    """Writes one folder per version and removes the one before; used by one process."""

    def __init__(self) -> None:
        self._newest: Path | None = None

    def publish(
        self, policy: PreTrainedModel, base_folder: str, directory: Path, *, policy_version: int, probe: AdapterProbe
    ) -> AdapterFolder:
        """The folder appears whole or not at all. Two versions lie in `directory` while one replaces the other.

        `base_folder`: of the model without the adapter. Where the policy is sharded, the other ranks meanwhile enter `gathering`
        for the same tensors.
        """
        folder = directory / f"policy-v{policy_version:06d}"
        partial = directory / f".{folder.name}.{os.getpid()}.partial"
        try:
            with gathering(file_tensors(policy)) as tensors:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
                write_adapter(policy, base_folder, partial, tensors)
            shutil.rmtree(folder, ignore_errors=True)  # of ranks that were lost: the version is done again
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        if self._newest is not None and self._newest != folder:
            shutil.rmtree(self._newest, ignore_errors=True)
        self._newest = folder
        weights, config = (
            seal_weights(path, path, policy_version=policy_version)
            for path in (folder / ADAPTER_WEIGHTS, folder / ADAPTER_CONFIG)
        )
        return AdapterFolder(weights=weights, config=config, probe=probe)
