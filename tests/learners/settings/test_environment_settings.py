"""Settings of runs in environments: what makes no sense is refused."""

import pytest
from pydantic import ValidationError

from learners.settings.environments.task import RLlibEvaluationConfig


def test_the_best_policy_needs_evaluations_on_the_way() -> None:
    with pytest.raises(ValidationError, match="keep=best needs evaluations on the way; set every_num_env_steps"):
        RLlibEvaluationConfig(keep="best")
    assert RLlibEvaluationConfig(keep="best", every_num_env_steps=10).num_interim_episodes == 20
