"""Activations computed again: the same gradient from less memory."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel

from cluster.errors import ConfigError
from learners.network.activation_checkpointing import recompute_activations
from learners.network.trunk import ForwardSettings, hidden_states

SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def _trunk(*, num_frozen_layers: int = 0) -> PreTrainedModel:
    torch.manual_seed(0)
    trunk = AutoModel.from_config(AutoConfig.for_model("llama", **SIZES)).eval()
    for layer in trunk.layers[:num_frozen_layers]:
        layer.requires_grad_(False)
    return trunk


def _gradients(trunk: PreTrainedModel, *, num_tokens: int, compute_dtype: torch.dtype) -> tuple[dict[str, Tensor], int]:
    """With the bytes that the forward pass keeps for the backward pass, weights aside."""
    weights = {parameter.data_ptr() for parameter in trunk.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    settings = ForwardSettings(compute_dtype=compute_dtype, temperature=1.0, chunk_tokens=8)
    token_ids_RS = torch.arange(2 * num_tokens).view(2, num_tokens) % 32
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden_RSD = hidden_states(trunk, token_ids_RS, settings)
    hidden_RSD.square().sum().backward()
    trained = {name: parameter for name, parameter in trunk.named_parameters() if parameter.requires_grad}
    return {name: parameter.grad for name, parameter in trained.items() if parameter.grad is not None}, sum(kept.values())


@pytest.mark.numeric
@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [24, 200])  # two kernels of attention on CPU: the second pass must take the first one's
@pytest.mark.parametrize("num_frozen_layers", [0, 1])
def test_the_gradient_is_the_same_to_the_bit_and_less_is_kept(
    num_tokens: int, num_frozen_layers: int, compute_dtype: torch.dtype
) -> None:
    plain, again = _trunk(num_frozen_layers=num_frozen_layers), _trunk(num_frozen_layers=num_frozen_layers)
    recompute_activations(again)
    expected, most_bytes = _gradients(plain, num_tokens=num_tokens, compute_dtype=compute_dtype)
    found, num_bytes = _gradients(again, num_tokens=num_tokens, compute_dtype=compute_dtype)
    assert found.keys() == expected.keys()
    assert [name for name, gradient in expected.items() if not gradient.equal(found[name])] == []
    assert num_bytes < 0.6 * most_bytes


def test_without_gradients_nothing_is_done_twice() -> None:
    trunk, calls = _trunk(), []
    recompute_activations(trunk)
    trunk.layers[1].mlp.register_forward_pre_hook(lambda *given: calls.append(1))
    settings = ForwardSettings(compute_dtype=torch.float32, temperature=1.0, chunk_tokens=8)
    with torch.no_grad():
        hidden_states(trunk, torch.arange(8)[None], settings)
    assert len(calls) == 1
    hidden_states(trunk, torch.arange(8)[None], settings).sum().backward()
    assert len(calls) == 3


def test_a_trunk_without_layers_is_refused() -> None:
    sizes: dict[str, Any] = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 32}
    with pytest.raises(ConfigError, match="activation_checkpointing computes decoder layers again, but GPT2Model"):
        recompute_activations(AutoModel.from_config(AutoConfig.for_model("gpt2", **sizes)))
