"""Models filled from their folders, rows of each tensor at a time."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, PreTrainedModel, Qwen3MoeConfig

from cluster.errors import DataError
from learners.network.models import empty_critic_trunk, empty_policy, load_critic_trunk, load_policy, read_part
from learners.network.sharding import WHOLE, Shard

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 33}


def allocated(model: PreTrainedModel) -> PreTrainedModel:
    """With memory for parameters, which an empty model has not."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.to_empty(device="cpu")
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    model.tie_weights()
    return model


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, intermediate_size=24, tie_word_embeddings=request.param)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path, max_shard_size="8KB")  # in several files
    return tmp_path


def test_a_whole_part_is_the_model_that_transformers_loads(folder: Path) -> None:
    tokens_BS = torch.arange(8)[None]
    assert all(parameter.is_meta for parameter in empty_policy(str(folder)).parameters())
    policy, trunk = allocated(empty_policy(str(folder))), allocated(empty_critic_trunk(str(folder)))
    for model in (policy, trunk):
        read_part(model, str(folder), WHOLE)
    with torch.no_grad():
        assert policy(tokens_BS).logits.equal(load_policy(str(folder))(tokens_BS).logits)
        expected = load_critic_trunk(str(folder))(tokens_BS).last_hidden_state
        assert trunk(tokens_BS).last_hidden_state.equal(expected)


def test_a_critic_starts_from_a_reward_model(tmp_path: Path) -> None:
    config = LlamaConfig(**SIZES, intermediate_size=24, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    trunk = allocated(empty_critic_trunk(str(tmp_path)))
    read_part(trunk, str(tmp_path), WHOLE)
    for name, weight in load_critic_trunk(str(tmp_path)).named_parameters():
        assert trunk.get_parameter(name).equal(weight)


def test_tensors_that_are_fused_in_memory_are_refused(tmp_path: Path) -> None:
    config = Qwen3MoeConfig(
        **SIZES, intermediate_size=32, moe_intermediate_size=8, head_dim=8, num_experts=4, num_experts_per_tok=2
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"has no tensor model\.layers\.0\.mlp\.experts\.\S+, .*sharding=none"):
        read_part(allocated(empty_policy(str(tmp_path))), str(tmp_path), WHOLE)


def test_a_folder_without_safetensors_is_refused(folder: Path) -> None:
    model = allocated(empty_policy(str(folder)))
    for path in folder.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(DataError, match="has no model.safetensors"):
        read_part(model, str(folder), WHOLE)


def test_rows_that_do_not_fit_are_refused(folder: Path) -> None:
    model = allocated(empty_policy(str(folder)))
    with pytest.raises(DataError, match=r"another shape than config\.json says"):
        read_part(model, str(folder), Shard(index=0, count=2))
    for path in folder.glob("*.safetensors"):
        save_file({name: tensor[..., :1].clone() for name, tensor in load_file(path).items()}, path)
    with pytest.raises(DataError, match=r"another shape than config\.json says"):
        read_part(model, str(folder), WHOLE)
