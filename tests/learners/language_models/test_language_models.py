"""Networks, folders and samples of language models of one's own."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from cluster.errors import ConfigError
from learners.language_models.files import load_language_model, write_language_model
from learners.language_models.sampling import completion_divergence, sample
from learners.settings.language_model.network import LanguageModelConfig
from tests.learners.language_models.small_models import LSTM, TRANSFORMER, VOCABULARY, build

BOTH = pytest.mark.parametrize("config", [LSTM, TRANSFORMER], ids=["lstm", "transformer"])
IDS_BT = torch.tensor([[0, 3, 1, 4, 1, 5], [2, 2, 0, 1, 3, 6]])


@BOTH
def test_what_follows_changes_nothing(config: LanguageModelConfig) -> None:
    model = build(config)
    changed_BT = IDS_BT.clone()
    changed_BT[:, 4:] = VOCABULARY.padding_id
    assert_close(model(changed_BT)[:, :4], model(IDS_BT)[:, :4])
    assert not torch.equal(model(changed_BT)[:, 4:], model(IDS_BT)[:, 4:])


@BOTH
def test_order_counts(config: LanguageModelConfig) -> None:
    """A Transformer without positions would not see it."""
    swapped_BT = IDS_BT[:, [1, 0, 2, 3, 4, 5]]
    assert not torch.allclose(build(config)(swapped_BT)[:, -1], build(config)(IDS_BT)[:, -1], atol=1e-6)


@BOTH
def test_a_folder_is_the_same_model_to_the_bit(config: LanguageModelConfig, tmp_path: Path) -> None:
    model = build(config, seed=3)
    write_language_model(model, tmp_path)
    loaded = load_language_model(tmp_path)
    assert loaded.vocabulary == VOCABULARY
    assert torch.equal(loaded(IDS_BT), model(IDS_BT))


def test_a_transformer_is_a_llama(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    model = build(TRANSFORMER)
    with torch.no_grad():
        for parameter in model.parameters():  # larger than at the start, so that attention is not nearly even
            parameter.mul_(3)
    write_language_model(model, tmp_path)
    llama, told = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(llama, LlamaForCausalLM)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert llama.generation_config.eos_token_id == VOCABULARY.end_id
    assert_close(model(IDS_BT), llama(IDS_BT).logits, atol=1e-5, rtol=0)  # logits near 1: float32 sums in another order


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ('"hidden_act": "gelu"', "not one of ours: {'hidden_act': 'gelu'}"),
        ('"model_type": "gpt2"', "not one of ours"),
        ('"vocab_size": 9', "not a language model that learner.algorithm=pretrain wrote"),
    ],
)
def test_another_folder_is_refused(change: str, problem: str, tmp_path: Path) -> None:
    write_language_model(build(TRANSFORMER), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().rstrip().removesuffix("}") + f", {change}}}")
    with pytest.raises(ConfigError, match=problem):
        load_language_model(tmp_path)


@BOTH
def test_samples_are_those_of_the_seed(config: LanguageModelConfig) -> None:
    model, prompts = build(config), [[0], [1, 2, 3]]
    first = sample(model, prompts, max_tokens=12, temperature=1.0, seed=5)
    assert first == sample(model, prompts, max_tokens=12, temperature=1.0, seed=5)
    assert first != sample(model, prompts, max_tokens=12, temperature=1.0, seed=6)
    for completion in first:
        assert len(completion) == 12 or completion[-1] == VOCABULARY.end_id
        assert VOCABULARY.end_id not in completion[:-1]


@BOTH
def test_a_prompt_is_completed_as_it_is_alone(config: LanguageModelConfig) -> None:
    model, prompts = build(config), [[0], [1, 2, 3], [4, 4]]
    together = sample(model, prompts, max_tokens=6, temperature=0, seed=0)
    assert together == [sample(model, [prompt], max_tokens=6, temperature=0, seed=0)[0] for prompt in prompts]


def test_temperature_flattens_what_is_drawn() -> None:
    """With a bias of 2 nats for token 3 it has e^2 / (e^2 + 7) = 0.51 of the mass, and e^0.2 / (e^0.2 + 7) = 0.15 at 10."""
    model = build(LSTM)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(2.0 * (torch.arange(8) == 3) if name == "output_bias" else torch.zeros_like(parameter))

    def share(temperature: float) -> float:
        drawn = sample(model, [[0]] * 4000, max_tokens=1, temperature=temperature, seed=0)
        return sum(completion == [3] for completion in drawn) / 4000

    assert share(1.0) == pytest.approx(0.514, abs=0.03)  # four standard deviations of 4,000 draws
    assert share(10.0) == pytest.approx(0.149, abs=0.03)


@BOTH
def test_divergence_counts_the_completion_alone(config: LanguageModelConfig) -> None:
    policy, start = build(config, seed=1), build(config, seed=2)
    prompts, completions = [[0, 1], [2]], [[3, 4], [5, 1, 6]]
    kl_B, start_logprob_B = completion_divergence(policy, start, prompts, completions)
    logprobs_TV, start_logprobs_TV = (model(torch.tensor([[0, 1, 3, 4]])).log_softmax(-1)[0] for model in (policy, start))
    kl_T = (logprobs_TV.exp() * (logprobs_TV - start_logprobs_TV)).sum(-1)
    assert_close(kl_B[0], kl_T[1:3].sum())  # the places that predict tokens 3 and 4
    assert_close(start_logprob_B[0], start_logprobs_TV[1, 3] + start_logprobs_TV[2, 4])
    assert_close(completion_divergence(policy, policy, prompts, completions)[0], torch.zeros(2))
