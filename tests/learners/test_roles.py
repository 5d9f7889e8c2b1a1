"""What is refused before the first role starts."""

from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.errors import ConfigError
from learners import roles
from learners.config import load_run_config

CONFIG = Path(roles.__file__).parents[1] / "configs" / "train" / "ppo_tiny.yaml"


def test_shared_memory_does_not_reach_a_second_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roles, "num_nodes", lambda: 2)
    with pytest.raises(ConfigError, match="the Ray cluster has 2 machines; set generator.weight_transfer=nccl"):
        roles.start_roles(ExitStack(), SimpleNamespace(), load_run_config(CONFIG, []), "tiny")
