"""Low-rank adapters, by peft: put into a model, filled, switched off, read, and merged. Source: arXiv:2106.09685, section 4.1.

Matrix W of an adapted layer becomes W + scale * B A. W is frozen; A [rank, in] starts at random, B [out, rank] at zero, so that a
model with a new adapter is the model without it. Both are float32, also where W is held in another type.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from cluster.errors import ConfigError
from cluster.seeding import derive_seed
from cluster.storage.policy_folders import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from learners.network.sharding import WHOLE, GatheredTensors, Shard, local_part, part_like, whole
from learners.network.tensor_files import write_tensors
from learners.settings.training import LoRAConfig

ADAPTER = "default"  # peft's name of a model's only adapter, which stands in the names of its tensors in memory, not in files
FILE_PREFIX = "base_model.model."  # of tensor names in peft's files
A_PART, B_PART = f".lora_A.{ADAPTER}.", f".lora_B.{ADAPTER}."
BASE_PART = ".base_layer."  # of the names of W and its bias in an adapted layer


def add_adapter(model: PreTrainedModel, config: LoRAConfig, *, num_frozen_layers: int, compute_dtype: torch.dtype) -> None:
    """Freeze a model, and put an adapter into all layers but the lowest `num_frozen_layers`: without memory yet, see
    `fill_adapter`.

    Frozen matrices are held in `compute_dtype`, as those of a reference are. Raises `ConfigError` where the settings do not fit
    the model.
    """
    num_layers = model.config.num_hidden_layers
    if num_frozen_layers >= num_layers:
        raise ConfigError(f"num_frozen_layers={num_frozen_layers} leaves none of {num_layers} layers to lora; lower it")
    layers = model.base_model.layers if "layers" in dict(model.base_model.named_children()) else nn.ModuleList()
    names = {name.rpartition(".")[2] for name, module in layers.named_modules() if isinstance(module, nn.Linear)}
    unknown = sorted(set(config.target_modules) - names)
    if unknown:
        raise ConfigError(
            f"lora.target_modules names {', '.join(unknown)}, which the layers of {type(model).__name__} do not have; they have "
            f"{', '.join(sorted(names)) or 'none'}"
        )
    inject_adapter_in_model(_peft_config(config, num_frozen_layers, num_layers), model, ADAPTER, low_cpu_mem_usage=True)
    for name, module in model.base_model.named_modules():
        if isinstance(module, nn.Linear) and not is_of_adapter(f".{name}."):
            module.to(compute_dtype)


@torch.no_grad()
def fill_adapter(model: PreTrainedModel, seed: int, shard: Shard = WHOLE) -> None:
    """Start an adapter: A is drawn by the tensor's name, the same however the model is sharded, B is zero."""
    for module in adapted_layers(model).values():
        for part in (module.lora_A[ADAPTER], module.lora_B[ADAPTER]):
            if part.weight.is_meta:
                part.to_empty(device="cpu")
    for name, tensor in adapter_tensors(model).items():
        if B_PART in name:
            tensor.zero_()
        else:
            bound = 1 / math.sqrt(tensor.shape[1])  # of torch's linear layers, and peft's
            generator = torch.Generator().manual_seed(derive_seed(seed, "lora", name))
            drawn = torch.empty(tensor.shape).uniform_(-bound, bound, generator=generator)
            local_part(tensor).copy_(drawn[shard.rows(len(drawn))])


def adapted_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """The matrices that have an adapter, by name; none in a model without."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """A and B of every adapted layer, by their names in memory; they share the model's."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if is_of_adapter(name)}


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """Inside, the model is what it was before it had an adapter."""
    layers = adapted_layers(model).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def is_of_adapter(name: str) -> bool:
    """Whether a tensor of this name is one of an adapter's."""
    return A_PART in name or B_PART in name


def plain_name(name: str) -> str:
    """Of a frozen tensor: what it is called in a model without adapters."""
    return name.replace(BASE_PART, ".")


def merged(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """`tensors`, the state of a model, as those of a model without adapters that does the same, one by one; sharded ones stay so.

    Call it on every rank, if they are sharded. Merged matrices are float32.
    """
    layers = {f"{name}{BASE_PART}weight": layer for name, layer in adapted_layers(model).items()}
    for name, tensor in tensors.items():
        if name in layers:
            yield plain_name(name), _merged_weight(layers[name])
        elif not is_of_adapter(name):
            yield plain_name(name), tensor.detach()


def file_tensors(model: nn.Module) -> dict[str, Tensor]:
    """An adapter by the names that peft's files have for it; sharded tensors stay so."""
    return {f"{FILE_PREFIX}{name.replace(f'.{ADAPTER}.', '.')}": tensor for name, tensor in adapter_tensors(model).items()}


def write_adapter(model: PreTrainedModel, base_folder: str, folder: Path, tensors: GatheredTensors) -> None:
    """Fill a folder as peft does: `tensors`, those of `file_tensors`, and a configuration that names the model without it."""
    (folder / ADAPTER_CONFIG).write_text(adapter_config(model, base_folder), encoding="utf-8")
    write_tensors(folder / ADAPTER_WEIGHTS, tensors, {"format": "pt"})


def adapter_config(model: PreTrainedModel, base_folder: str) -> str:
    """What peft writes beside an adapter's tensors. `base_folder`: of the model without it."""
    config = copy.copy(model.peft_config[ADAPTER])
    config.base_model_name_or_path = base_folder
    config.inference_mode = True
    with TemporaryDirectory() as folder:  # peft writes files only
        config.save_pretrained(folder)
        return (Path(folder) / ADAPTER_CONFIG).read_text(encoding="utf-8")


@torch.no_grad()
def _merged_weight(layer: LoraLayer) -> Tensor:
    base, rows_of_b = layer.base_layer.weight, local_part(layer.lora_B[ADAPTER].weight)
    delta = layer.scaling[ADAPTER] * (rows_of_b @ whole(layer.lora_A[ADAPTER].weight))
    return part_like(local_part(base).float() + delta, base)


def _peft_config(config: LoRAConfig, num_frozen_layers: int, num_layers: int) -> LoraConfig:
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=list(config.target_modules),
        layers_to_transform=list(range(num_frozen_layers, num_layers)) if num_frozen_layers else None,
    )
