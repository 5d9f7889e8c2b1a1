"""What leaves a learner as files, on the tiny model: weights for generators, and policies as folders."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.errors import DataError
from cluster.storage.serving_contract import ContractText, check_files, read_contract
from cluster.types import ScoredBatch
from learners.network import models
from learners.policy.learner import PolicyLearner
from learners.policy.start import StartingPoint
from learners.settings.policy import PolicyLearnerConfig

ConfigBuilder = Callable[..., PolicyLearnerConfig]
BatchBuilder = Callable[..., ScoredBatch]


def _learner(model: str, config: PolicyLearnerConfig, *, temperature: float = 1.0) -> PolicyLearner:
    start = StartingPoint(model_path=model, temperature=temperature, max_completion_tokens=8, samples_per_prompt=1, seed=0)
    return PolicyLearner(start, config)


def test_published_weights_replace_the_version_before(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder, tmp_path: Path
) -> None:
    learner = _learner(tiny_model, ppo_config())
    first = learner.publish(tmp_path, "bfloat16")
    learner.update(scored_batch())
    second = learner.publish(tmp_path, "bfloat16")
    assert (first.policy_version, second.policy_version) == (0, 2)
    assert first.checksum != second.checksum
    assert [str(path) for path in tmp_path.iterdir()] == [second.path]
    tensors = load_file(second.path)
    assert "lm_head.weight" not in tensors  # tied to model.embed_tokens.weight
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_an_exported_policy_loads_as_it_is(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder, tmp_path: Path
) -> None:
    learner = _learner(tiny_model, ppo_config())
    learner.update(scored_batch())
    assert learner.export(tmp_path / "policy", "float32", ()) == ""
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    assert model.dtype == torch.float32
    assert_close(
        model.model.embed_tokens.weight.detach(),
        load_file(learner.publish(tmp_path, "float32").path)["model.embed_tokens.weight"],
        rtol=0,
        atol=0,
    )
    start_tokenizer, tokenizer = (AutoTokenizer.from_pretrained(folder) for folder in (tiny_model, tmp_path / "policy"))
    assert tokenizer("a film").input_ids == start_tokenizer("a film").input_ids
    assert tokenizer.chat_template == start_tokenizer.chat_template
    with pytest.raises(DataError, match="exists already"):
        learner.export(tmp_path / "policy", "float32", ())


def test_the_serving_contract_of_an_exported_policy_holds_for_its_folder(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder, tmp_path: Path
) -> None:
    """Log-probabilities are at temperature 1, though the run samples at another."""
    learner = _learner(tiny_model, ppo_config(), temperature=0.7)
    learner.update(scored_batch())
    folder = tmp_path / "policy"
    token_ids = tuple(AutoTokenizer.from_pretrained(tiny_model)("a film that is", add_special_tokens=False).input_ids)
    learner.export(folder, "float32", (ContractText(text="a film that is", token_ids=token_ids),))
    contract = read_contract(folder)
    assert contract is not None
    check_files(folder, contract)
    assert "model.safetensors" in contract.files
    assert (contract.policy_version, contract.weights_dtype, contract.compute_dtype) == (2, "float32", "float32")
    assert contract.max_logprob_mismatch == ppo_config().mismatch.max_logprob_mismatch
    (prompt,) = contract.prompts
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.inference_mode():
        logprobs_TV = model(torch.tensor([token_ids])).logits[0].log_softmax(-1)
    expected_T = logprobs_TV[:-1].gather(1, torch.tensor(token_ids[1:])[:, None]).squeeze(1)
    assert_close(torch.tensor(prompt.logprobs), expected_T, atol=1e-4, rtol=0)


def test_a_policy_that_is_not_finite_is_not_exported(tiny_model: str, ppo_config: ConfigBuilder, tmp_path: Path) -> None:
    learner = _learner(tiny_model, ppo_config())
    with torch.no_grad():
        learner._network.policy.model.norm.weight.fill_(float("nan"))
    with pytest.raises(DataError, match="not finite"):
        learner.export(tmp_path / "policy", "float32", (ContractText(text="a", token_ids=(1, 2)),))
    assert not list(tmp_path.iterdir())


def test_an_export_that_does_not_fit_on_the_disk_leaves_nothing(
    tiny_model: str, ppo_config: ConfigBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    learner = _learner(tiny_model, ppo_config())
    monkeypatch.setattr(models, "write_tensors", full)
    assert "No space left" in learner.export(tmp_path / "policy", "float32", ())
    assert not list(tmp_path.iterdir())
