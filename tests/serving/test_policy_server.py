"""A replica that takes a newer policy: what its engine is told, without an engine."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from serving.policy_folder import PolicyFolder
from serving.version_gate import VersionGate


@pytest.fixture
def policies(tmp_path: Path) -> list[Path]:
    """Versions 1 and 2 of a run, each in two files that an index names, with the weights once more in a third."""
    folders = [tmp_path / "policies" / f"v00000{version}" for version in (1, 2)]
    for folder in folders:
        folder.mkdir(parents=True)
        for name in ("config.json", "tokenizer.json"):
            (folder / name).write_text("{}")
        for name in ("a", "b", "consolidated"):
            save_file({name: np.zeros(2, np.float32)}, folder / f"{name}.safetensors")
        index = {"weight_map": {name: f"{name}.safetensors" for name in ("a", "b")}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folders


def test_a_newer_policy_is_loaded_from_the_files_that_its_index_names(policies: list[Path], tmp_path: Path) -> None:
    from serving.policy_server import PolicyServer

    class Recording(PolicyServer):
        def __del__(self) -> None:
            """Ray's is a coroutine, which nothing awaits without Serve."""

        async def pause(self, *arguments: Any, **settings: Any) -> None:
            calls.append("pause")

        async def resume(self, *arguments: Any, **settings: Any) -> None:
            calls.append("resume")

        async def collective_rpc(self, method: str, *arguments: Any, **settings: Any) -> None:
            calls.append((method, Path(settings["kwargs"]["update_info"]["path"])) if settings else method)

    calls: list[Any] = []
    server = object.__new__(Recording)  # its __init__ starts an engine
    server._policy = PolicyFolder(path=policies[0], name="run", policy_version=1)
    server._gate, server._loaded_from = VersionGate(1), policies[0]
    asyncio.run(server._take_newest(tmp_path))
    files = [("update_weights", policies[1] / f"{name}.safetensors") for name in ("a", "b")]
    assert calls == ["pause", "start_weight_update", *files, "finish_weight_update", "resume"]
    assert asyncio.run(server.policy_version()) == 2
