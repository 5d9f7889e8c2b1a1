"""Low-rank adapters for generators to load: the tensors as any other weights, their configuration in the record."""

from pathlib import Path

from transformers import PreTrainedModel

from cluster.types import AdapterFile, AdapterProbe
from learners.network.lora import adapter_config, file_tensors
from learners.weights.file import publish_weights


def publish_adapter(
    policy: PreTrainedModel, base_folder: str, directory: Path, *, policy_version: int, probe: AdapterProbe
) -> AdapterFile:
    """As `publish_weights`, of a policy's adapter alone. `base_folder`: of the model without it."""
    return AdapterFile(
        weights=publish_weights(file_tensors(policy), directory, policy_version=policy_version),
        config=adapter_config(policy, base_folder),
        probe=probe,
    )
