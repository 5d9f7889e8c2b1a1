"""An adapter becomes a whole model: once, by peft, and only if it is what the learner wrote. On the tiny model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from actors.sources.adapters import is_adapter, merged_model
from actors.sources.models import resolve_model
from actors.sources.tensor_shapes import folder_tensor_shapes
from cluster.errors import DataError
from cluster.storage.serving_contract import (
    ContractPrompt,
    ServingContract,
    check_files,
    file_digests,
    read_contract,
    write_contract,
)

TOKENS = torch.arange(65, 75)[None]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    shutil.copytree(resolve_model("tiny"), folder)
    return folder


@pytest.fixture
def adapter(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of random numbers, with the contract of a float32 policy."""
    monkeypatch.setenv("RAYWARD_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "policies" / "v000007"
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj"])
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    shutil.copy(base / "tokenizer.json", folder)
    seal(folder)
    return folder


def seal(folder: Path) -> None:
    prompt = ContractPrompt(text="abc", token_ids=(97, 98, 99), logprobs=(-1.0, -2.0))
    contract = ServingContract(
        policy_version=7,
        weights_dtype="float32",
        compute_dtype="float32",
        max_logprob_mismatch=0.1,
        files=file_digests(folder),
        prompts=(prompt,),
    )
    write_contract(folder, contract)


def test_the_merged_model_does_what_the_adapter_does(base: Path, adapter: Path) -> None:
    assert is_adapter(adapter)
    assert not is_adapter(base)
    folder = merged_model(adapter)
    assert not is_adapter(folder)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(adapter)).eval()
    whole, start = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (folder, base))
    with torch.no_grad():
        expected, found, without = (each(input_ids=TOKENS).logits for each in (model, whole, start))
    assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (expected - without).abs().max() > 0.1
    assert folder_tensor_shapes(folder) == folder_tensor_shapes(base)
    assert resolve_model(str(folder)) == str(folder)  # with the tokenizer, and no code in it
    contract = read_contract(folder)
    assert contract is not None
    check_files(folder, contract)
    assert (contract.policy_version, contract.prompts[0].text) == (7, "abc")


def test_it_is_merged_once_and_again_when_it_has_changed(adapter: Path) -> None:
    folder = merged_model(adapter)
    mark = folder / "config.json"
    written_ns = mark.stat().st_mtime_ns
    assert merged_model(adapter) == folder
    assert mark.stat().st_mtime_ns == written_ns
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 1}))
    seal(adapter)
    assert merged_model(adapter) != folder


def test_an_adapter_from_elsewhere_has_no_contract_and_its_models_type(base: Path, adapter: Path) -> None:
    (adapter / "serving_contract.json").unlink()
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    folder = merged_model(adapter)
    assert read_contract(folder) is None
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "is not as the learner wrote it: tokenizer.json changed"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "does not name the adapter's model"),
        (
            lambda folder: (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/nowhere"}'),
            "names the model '/nowhere', which is no folder of this machine",
        ),
    ],
)
def test_what_cannot_be_merged_is_named(adapter: Path, damage: object, reason: str) -> None:
    assert callable(damage)
    damage(adapter)
    with pytest.raises(DataError, match=reason):
        merged_model(adapter)


def test_tensors_that_are_none_of_the_models_are_no_adapter_of_it(base: Path, adapter: Path) -> None:
    config = LlamaConfig.from_pretrained(base, hidden_size=32, head_dim=8)
    LlamaForCausalLM(config).save_pretrained(base)
    with pytest.raises(DataError, match="cannot be merged into"):
        merged_model(adapter)
    assert not list((adapter.parents[1] / "cache" / "merged").iterdir())  # nothing half-done
