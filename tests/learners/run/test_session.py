"""What surrounds a run: which variables its workers need."""

from pathlib import Path
from typing import Any

import pytest

from learners.run import plan
from learners.run.session import named_variables
from learners.settings.run import PolicyRunConfig, load_run_config

CONFIG = Path(plan.__file__).parents[2] / "configs" / "train" / "tiny.yaml"


def test_variables_that_scorers_name_are_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "s3cret")
    scorers: list[dict[str, Any]] = [
        {"kind": "http", "url": "http://127.0.0.1:9/score", "headers_from_env": {"Authorization": "JUDGE_KEY"}},
        {"kind": "python", "path": "tests.faults.bad_rewards:huge", "environment": ["OWN_KEY"]},
        {"kind": "function", "function": "length"},
    ]
    values = load_run_config(CONFIG).model_dump(mode="json") | {"scorers": scorers}
    assert named_variables(PolicyRunConfig.model_validate(values)) == ["JUDGE_KEY", "OWN_KEY"]
