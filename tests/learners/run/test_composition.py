"""What is refused before the first role starts."""

from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from cluster.errors import ConfigError
from learners.run import composition
from learners.run.session import Session
from learners.settings.run import PolicyRunConfig, load_run_config

CONFIG = Path(composition.__file__).parents[2] / "configs" / "train" / "tiny.yaml"


def test_shared_memory_does_not_reach_a_second_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composition, "num_nodes", lambda: 2)
    config = load_run_config(CONFIG, [])
    assert isinstance(config, PolicyRunConfig)
    with pytest.raises(ConfigError, match="the Ray cluster has 2 machines; set generator.weight_transfer=nccl"):
        composition.start_roles(ExitStack(), cast(Session, SimpleNamespace()), config, "tiny")
