"""Adapters against numbers worked out by hand, and against peft's own reading of the files, on the tiny model in float32."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, PreTrainedModel

from actors.config import DType
from cluster.errors import ConfigError
from learners.network.lora import (
    adapted_layers,
    adapter_off,
    adapter_tensors,
    add_adapter,
    file_tensors,
    fill_adapter,
    write_adapter,
)
from learners.network.models import TORCH_DTYPES, load_policy
from learners.network.sharding import gathering
from learners.settings.training import LoRAConfig
from learners.weights.file import generator_weights

TOKENS = torch.arange(65, 75)[None]
CONFIG = LoRAConfig(rank=8, alpha=24)


def adapted(folder: str, config: LoRAConfig = CONFIG, *, num_frozen_layers: int = 0, dtype: DType = "float32") -> PreTrainedModel:
    policy = load_policy(folder)
    add_adapter(policy, config, num_frozen_layers=num_frozen_layers, compute_dtype=TORCH_DTYPES[dtype])
    fill_adapter(policy, seed=3)
    return policy


@torch.no_grad()
def with_noise(policy: PreTrainedModel) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(1)
    for tensor in adapter_tensors(policy).values():
        tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    return policy


@torch.no_grad()
def logits_of(policy: torch.nn.Module) -> Tensor:
    return policy(input_ids=TOKENS, use_cache=False).logits


def test_a_matrix_becomes_itself_and_alpha_over_rank_times_b_a(tiny_model: str) -> None:
    policy = adapted(tiny_model, LoRAConfig(rank=1, alpha=3, target_modules=("q_proj",)))
    layer = policy.model.layers[1].self_attn.q_proj
    start = load_policy(tiny_model).model.layers[1].self_attn.q_proj.weight
    width = start.shape[1]
    with torch.no_grad():
        layer.lora_A["default"].weight.fill_(0.5)
        layer.lora_B["default"].weight.fill_(0.25)
        inputs = torch.ones(1, width)
        assert_close(
            layer(inputs), inputs @ start.t() + 3 * 0.25 * 0.5 * width
        )  # each output gets 3/1 * 0.25 * (0.5 + ... + 0.5)
    weights = generator_weights(policy, torch.float32)
    assert_close(weights["model.layers.1.self_attn.q_proj.weight"], start.detach() + 3 * 0.25 * 0.5)
    assert torch.equal(
        weights["model.layers.0.self_attn.q_proj.weight"], load_policy(tiny_model).model.layers[0].self_attn.q_proj.weight
    )


def test_a_new_adapter_changes_nothing_and_one_that_is_off_does_not_either(tiny_model: str) -> None:
    policy, start = adapted(tiny_model), logits_of(load_policy(tiny_model))
    assert torch.equal(logits_of(policy), start)
    with_noise(policy)
    assert (logits_of(policy) - start).abs().max() > 0.1
    with adapter_off(policy):
        assert torch.equal(logits_of(policy), start)
    assert (logits_of(policy) - start).abs().max() > 0.1
    assert all(parameter.requires_grad for name, parameter in policy.named_parameters() if ".lora_" in name)


def test_the_adapter_alone_is_trained_and_starts_the_same_for_the_same_seed(tiny_model: str) -> None:
    policy, again = adapted(tiny_model), adapted(tiny_model)
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert trained == set(adapter_tensors(policy))
    assert len(trained) == 2 * 2 * 7  # A and B, two layers, seven matrices
    for name, tensor in adapter_tensors(policy).items():
        assert torch.equal(tensor, adapter_tensors(again)[name])
        assert (tensor == 0).all() == ("lora_B" in name)
    first, second = (adapter_tensors(policy)[f"model.layers.{layer}.mlp.up_proj.lora_A.default.weight"] for layer in (0, 1))
    assert not torch.equal(first, second)
    bound = first.shape[1] ** -0.5
    assert bound / 2 < first.abs().max() <= bound


def test_frozen_layers_have_no_adapter(tiny_model: str) -> None:
    policy = adapted(tiny_model, num_frozen_layers=1)
    assert {name.split(".")[2] for name in adapter_tensors(policy)} == {"1"}


def test_frozen_matrices_are_held_in_the_compute_type_and_merged_in_float32(tiny_model: str) -> None:
    policy = with_noise(adapted(tiny_model, dtype="bfloat16"))
    layer = adapted_layers(policy)["model.layers.0.mlp.down_proj"]
    assert layer.base_layer.weight.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in adapter_tensors(policy).values()} == {torch.float32}
    a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
    merged = generator_weights(policy, torch.float32)["model.layers.0.mlp.down_proj.weight"]
    assert_close(merged, layer.base_layer.weight.float() + 24 / 8 * (b @ a))


def test_peft_reads_the_written_adapter_and_it_does_what_the_policy_does(tiny_model: str, tmp_path: Path) -> None:
    policy = with_noise(adapted(tiny_model, num_frozen_layers=1))
    with gathering(file_tensors(policy)) as tensors:
        write_adapter(policy, tiny_model, tmp_path, tensors)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == tiny_model
    read = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), str(tmp_path))
    assert_close(logits_of(read.eval()), logits_of(policy), atol=1e-5, rtol=1e-5)


def test_merged_weights_are_those_of_a_model_that_does_the_same(tiny_model: str) -> None:
    policy, plain = with_noise(adapted(tiny_model)), load_policy(tiny_model)
    weights = generator_weights(policy, torch.float32)
    assert weights.keys() == generator_weights(plain, torch.float32).keys()
    plain.load_state_dict(weights, strict=False)  # the head is tied
    assert_close(logits_of(plain), logits_of(policy), atol=1e-5, rtol=1e-5)


def test_matrices_that_a_model_does_not_have_are_named(tiny_model: str) -> None:
    with pytest.raises(ConfigError, match="names c_attn, which the layers of LlamaForCausalLM do not have; they have down_proj"):
        adapted(tiny_model, LoRAConfig(target_modules=("q_proj", "c_attn")))


def test_a_model_without_trained_layers_has_none_for_an_adapter(tiny_model: str) -> None:
    with pytest.raises(ConfigError, match="num_frozen_layers=2 leaves none of 2 layers to lora"):
        adapted(tiny_model, num_frozen_layers=2)
