"""Files made to run code where they are read: a model folder, a checkpoint, data and settings. None of it runs."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from actors.generation.rendering import load_tokenizer, render_prompt
from actors.sources.models import resolve_model
from actors.tasks.jsonl import load_tasks
from cluster.config import read_yaml
from cluster.errors import RaywardError
from cluster.messages import Message
from cluster.storage.checkpoint import CheckpointFolder
from cluster.storage.ledger import read_ledger
from cluster.types import Task
from learners.network.models import load_policy
from learners.ranks.checkpoint import NUMBERS_NAME, TENSORS_NAME, read_snapshot
from learners.settings.run import load_resolved_config


class Hostile:
    """Touches a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self._canary}",)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def hostile_pickle(canary: Path) -> bytes:
    """That it is hostile is proven here: unpickled once, and the canary removed."""
    content = pickle.dumps(Hostile(canary))
    pickle.loads(content)
    assert canary.exists()
    canary.unlink()
    return content


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A copy of the tiny model, to be spoilt."""
    return Path(shutil.copytree(resolve_model("tiny"), tmp_path / "model"))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_pickled_weights_of_a_model(model_folder: Path, canary: Path, hostile_pickle: bytes, name: str) -> None:
    (model_folder / "model.safetensors").unlink()
    (model_folder / name).write_bytes(hostile_pickle)
    with pytest.raises(Exception, match="safetensors|deserializ"):
        load_policy(resolve_model(str(model_folder)))
    assert not canary.exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_model_with_code_of_its_own(model_folder: Path, canary: Path, name: str) -> None:
    (model_folder / "modeling_own.py").write_text(f"import os\nos.system('touch {canary}')\nclass Model: pass\n")
    content = json.loads((model_folder / name).read_text())
    auto_map = {
        "AutoConfig": "modeling_own.Model",
        "AutoModelForCausalLM": "modeling_own.Model",
        "AutoTokenizer": ["modeling_own.Model"],
    }
    (model_folder / name).write_text(json.dumps({**content, "auto_map": auto_map}))
    with pytest.raises(RaywardError, match="never run here"):
        resolve_model(str(model_folder))
    load_tokenizer(str(model_folder))  # not even where nobody looked first
    assert not canary.exists()


def test_a_chat_template_that_reaches_for_python(model_folder: Path, canary: Path) -> None:
    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.system('touch CANARY') }}"
    (model_folder / "chat_template.jinja").write_text(template.replace("CANARY", str(canary)))
    task = Task(task_id="t/1", messages=(Message(role="user", content="go"),))
    with pytest.raises(RaywardError, match="does not fit the model's chat template"):
        render_prompt(task, load_tokenizer(str(model_folder)), prompt_format="chat")
    assert not canary.exists()


@pytest.mark.parametrize("name", [TENSORS_NAME, NUMBERS_NAME])
def test_a_checkpoint_whose_digests_are_right(tmp_path: Path, canary: Path, hostile_pickle: bytes, name: str) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints")

    def write_files(path: Path) -> None:
        (path / NUMBERS_NAME).write_text("{}")
        (path / TENSORS_NAME).write_bytes((2).to_bytes(8, "little") + b"{}")
        (path / name).write_bytes(hostile_pickle)

    folder.write(1, policy_version=1, facts={}, write_files=write_files)
    checkpoint = folder.newest_intact()
    assert checkpoint is not None
    with pytest.raises(RaywardError, match="holds no learner's snapshot"):
        read_snapshot(checkpoint)
    assert not canary.exists()


def test_a_manifest_that_is_a_pickle(tmp_path: Path, canary: Path, hostile_pickle: bytes) -> None:
    (tmp_path / "step-000001").mkdir()
    (tmp_path / "step-000001" / "MANIFEST.json").write_bytes(hostile_pickle)
    with pytest.raises(RaywardError, match="MANIFEST.json"):
        CheckpointFolder(tmp_path).newest_intact()
    assert not canary.exists()


@pytest.mark.parametrize("read", [read_yaml, lambda path: load_resolved_config(path.parent)], ids=["settings", "a run to resume"])
def test_settings_that_call_a_function(tmp_path: Path, canary: Path, read: Callable[[Path], object]) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"name: !!python/object/apply:os.system ['touch {canary}']\n")
    with pytest.raises(RaywardError, match="config.yaml"):
        read(file)
    assert not canary.exists()


def test_data_that_is_a_pickle(tmp_path: Path, canary: Path, hostile_pickle: bytes) -> None:
    (tmp_path / "tasks.jsonl").write_bytes(hostile_pickle)
    with pytest.raises(RaywardError, match="tasks.jsonl:1"):
        load_tasks(tmp_path / "tasks.jsonl")
    (tmp_path / "step-000000.jsonl").write_bytes(hostile_pickle)
    with pytest.raises(RaywardError):
        list(read_ledger(tmp_path))
    assert not canary.exists()
