"""What a policy publishes is what its model folder holds, and its bytes are hashed once on their way to every generator."""

import hashlib
from io import BufferedReader
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, PretrainedConfig, Qwen3MoeConfig

from actors.sources.tensor_shapes import folder_tensor_shapes
from cluster.storage.weight_file import check_weights
from learners.weights.file import generator_weights, publish_weights

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 32}


@pytest.mark.parametrize(
    "config",
    [
        Qwen3MoeConfig(**SIZES, intermediate_size=32, moe_intermediate_size=8, head_dim=8, num_experts=4, num_experts_per_tok=2),
        MixtralConfig(**SIZES, intermediate_size=8, num_local_experts=2),
        LlamaConfig(**SIZES, intermediate_size=8),
    ],
    ids=lambda config: config.model_type,
)
def test_weights_have_the_names_of_the_model_folder(config: PretrainedConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    policy = AutoModelForCausalLM.from_pretrained(tmp_path)
    weights = generator_weights(policy, torch.float32)
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == folder_tensor_shapes(tmp_path)
    assert sum(tensor.sum().item() for tensor in weights.values()) == pytest.approx(
        sum(parameter.sum().item() for parameter in policy.parameters()), rel=1e-4
    )


def test_a_publication_is_hashed_once_for_all_generators_of_a_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    digest = hashlib.file_digest

    def counted(file: BufferedReader, name: str) -> object:
        hashed.append(name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    for version in (1, 2):
        weights = publish_weights({"a": torch.full((8,), float(version))}, tmp_path, policy_version=version)
        for _ in range(3):  # generators
            check_weights(weights)
        assert len(hashed) == version
        assert weights.checksum == hashlib.sha256(Path(weights.path).read_bytes()).hexdigest()
