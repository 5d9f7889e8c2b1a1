"""A language model of one's own as RLlib's module. No Ray."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from ray.rllib.core.columns import Columns
from torch.testing import assert_close

from learners.language_models.files import write_language_model
from learners.rllib.language_model import LanguageModelModule, language_model_spec
from learners.settings.language_model.network import LanguageModelConfig
from tests.learners.language_models.small_models import LSTM, TRANSFORMER, build

OBSERVATIONS = torch.tensor([[2, 0, 1, 7, 7, 7], [4, 5, 4, 3, 2, 7]])  # length, ids, padding


@pytest.fixture(params=[LSTM, TRANSFORMER], ids=["lstm", "transformer"])
def config(request: pytest.FixtureRequest) -> LanguageModelConfig:
    chosen: LanguageModelConfig = request.param
    return chosen


def module_of(config: LanguageModelConfig, folder: Path) -> LanguageModelModule:
    write_language_model(build(config), folder)
    spec = language_model_spec(folder)
    spec.observation_space, spec.action_space = Box(0, 8, shape=(6,), dtype=np.int64), Discrete(8)
    module = spec.build()
    assert isinstance(module, LanguageModelModule)
    return module


def test_the_policy_is_the_models_next_token(config: LanguageModelConfig, tmp_path: Path) -> None:
    module, model = module_of(config, tmp_path), build(config)
    logits = module.forward_exploration({Columns.OBS: OBSERVATIONS})[Columns.ACTION_DIST_INPUTS]
    assert_close(logits[0], model(torch.tensor([[0, 1]]))[0, -1])
    assert_close(logits[1], model(torch.tensor([[5, 4, 3, 2]]))[0, -1])


def test_the_value_begins_at_zero_and_its_error_leaves_the_language_alone(config: LanguageModelConfig, tmp_path: Path) -> None:
    module = module_of(config, tmp_path)
    found = module.forward_train({Columns.OBS: OBSERVATIONS})
    values_B = module.compute_values({Columns.OBS: OBSERVATIONS}, embeddings=found[Columns.EMBEDDINGS])
    assert values_B.tolist() == [0.0, 0.0]
    assert_close(module.compute_values({Columns.OBS: OBSERVATIONS}), values_B)
    (values_B - 1).square().sum().backward()
    assert module.value_head.weight.grad is not None
    assert all(parameter.grad is None for parameter in module.language_model.parameters())
    found[Columns.ACTION_DIST_INPUTS].square().sum().backward()
    assert any(parameter.grad is not None for parameter in module.language_model.parameters())


def test_an_observation_of_zeros_has_a_value(config: LanguageModelConfig, tmp_path: Path) -> None:
    """RLlib fills up with them."""
    assert module_of(config, tmp_path).compute_values({Columns.OBS: torch.zeros(1, 6)}).tolist() == [0.0]
