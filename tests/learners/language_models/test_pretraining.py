"""Maximum likelihood on a text."""

import math

import pytest
import torch

from cluster.errors import DataError
from learners.language_models.language_model import LanguageModel
from learners.language_models.pretraining import TokenText, mean_loss, pretrain, split_text
from learners.settings.language_model.network import LanguageModelConfig
from learners.settings.language_model.pretraining import PretrainingLearnerConfig
from tests.learners.language_models.small_models import LSTM, TRANSFORMER, build

ROUND = torch.arange(6).repeat(60)  # 0 1 2 3 4 5 0 1 2 ...: each token says which is next


def learned(network: LanguageModelConfig, *, seed: int = 0) -> tuple[LanguageModel, list[dict[str, float]], TokenText]:
    config = PretrainingLearnerConfig(
        algorithm="pretrain", network=network, num_steps=120, batch_size=8, context_tokens=12, learning_rate=0.02
    )
    text = split_text(ROUND, held_out_frac=0.2, context_tokens=12)
    model = build(network)
    return model, list(pretrain(model, text, config, seed=seed)), text


@pytest.mark.parametrize("network", [LSTM, TRANSFORMER], ids=["lstm", "transformer"])
def test_a_text_is_learned_and_a_seed_learns_it_alike(network: LanguageModelConfig) -> None:
    model, metrics, text = learned(network)
    before = mean_loss(build(network), text.held_out, context_tokens=12)
    assert before == pytest.approx(math.log(8), abs=0.15)  # 8 tokens, about evenly likely
    assert mean_loss(model, text.held_out, context_tokens=12) < 0.2
    assert metrics[0]["pretraining/logprob_mean"] < 8 * metrics[-1]["pretraining/logprob_mean"]
    again, again_metrics, _ = learned(network)
    assert again_metrics == metrics
    assert all(torch.equal(*pair) for pair in zip(again.parameters(), model.parameters(), strict=True))
    assert learned(network, seed=1)[1] != metrics


def test_the_learning_rate_falls_along_a_line() -> None:
    rates = [line["optim/learning_rate"] for line in learned(LSTM)[1]]
    assert rates[0] == 0.02
    assert rates[60] == pytest.approx(0.01)
    assert rates[-1] == pytest.approx(0.02 / 120)


def test_all_tokens_but_the_first_count_once() -> None:
    """However the text is cut, where nothing but the last token matters."""
    model = build(LSTM)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.arange(8.0) if name == "output_bias" else torch.zeros_like(parameter))
    ids = torch.tensor([0, 1, 2, 3, 4])
    losses = -torch.arange(8.0).log_softmax(0)[1:5]
    assert mean_loss(model, ids, context_tokens=2) == pytest.approx(float(losses.mean()), abs=1e-5)
    assert mean_loss(model, ids, context_tokens=4) == pytest.approx(float(losses.mean()), abs=1e-5)


def test_a_text_that_is_too_short_is_refused() -> None:
    with pytest.raises(DataError, match="16 tokens to train on and 4 held out, and each part needs more than .*=8; lower it"):
        split_text(torch.zeros(20, dtype=torch.long), held_out_frac=0.2, context_tokens=8)
