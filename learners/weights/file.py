"""Weights as one safetensors file in shared memory, for generators to take over."""

import os
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from cluster.processes.hosts.folder import this_node
from cluster.storage.weight_file import remove_earlier_versions, seal_weights
from cluster.types import WeightFile
from learners.network.lora import merged
from learners.network.sharding import gathering
from learners.network.tensor_files import write_tensors


def publish_weights(tensors: Mapping[str, Tensor], directory: Path, *, policy_version: int) -> WeightFile:
    """Write one file, which appears whole or not at all, and remove earlier ones; until then two versions lie in `directory`.

    Of sharded tensors each is whole for a moment only; the other ranks meanwhile enter `gathering` for the same ones.
    """
    started_s = time.time()
    path = directory / f"policy-v{policy_version:06d}.safetensors"
    partial = directory / f".{path.name}.{os.getpid()}.partial"
    try:
        with gathering(tensors) as gathered:
            directory.mkdir(parents=True, exist_ok=True)
            write_tensors(partial, gathered)
        weights = seal_weights(partial, path, policy_version=policy_version, node_id=this_node())
    finally:
        partial.unlink(missing_ok=True)
    remove_earlier_versions(directory, before_s=started_s)
    return weights


def generator_weights(policy: PreTrainedModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every parameter once, under the name that a checkpoint gives it: in memory, transformers fuses the experts of a layer.

    An adapter is merged into what it adapts. A sharded tensor stays so, on its device; any other is on the CPU. Call it on every
    rank, if they are sharded.
    """
    in_memory = {name: _converted(tensor, dtype) for name, tensor in merged(policy, untied_tensors(policy))}
    return {name: tensor.contiguous() for name, tensor in revert_weight_conversion(policy, in_memory).items()}


def untied_tensors(policy: PreTrainedModel) -> dict[str, Tensor]:
    """The state of a policy, where a tied tensor appears under one of its names only."""
    tied = set(policy.all_tied_weights_keys)
    return {name: tensor for name, tensor in policy.state_dict().items() if name not in tied}


def _converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if isinstance(tensor, DTensor) else tensor.to("cpu", dtype)
