"""Model names and folders: what is taken, and what is refused with a way out."""

import json
import shutil
from pathlib import Path

import pytest

from actors.sources.models import model_digest, resolve_model
from actors.sources.tiny_model import byte_tokenizer
from cluster.errors import DataError, FetchError


def model_folder(folder: Path, *, config: object, weights: str = "model.safetensors") -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    (folder / weights).write_bytes(b"")
    return folder


def test_a_folder_is_itself(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, config={"model_type": "llama"})
    assert resolve_model(str(folder)) == str(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_folder_with_its_own_code_is_refused(tmp_path: Path, name: str) -> None:
    model_folder(tmp_path, config={"model_type": "llama"})
    (tmp_path / name).write_text(json.dumps({"auto_map": {"AutoModel": "modeling.Evil"}}))
    with pytest.raises(DataError, match=f"{name} has an auto_map.*never run here"):
        resolve_model(str(tmp_path))


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no config.json"):
        resolve_model(str(tmp_path))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    model_folder(tmp_path, config={}, weights="pytorch_model.bin")
    with pytest.raises(DataError, match=r"has no \*.safetensors; save it again with save_pretrained"):
        resolve_model(str(tmp_path))


@pytest.mark.parametrize("text", ["{", "[]", '{"a": "\xff"}'.encode("latin-1")])
def test_a_broken_config_is_named(tmp_path: Path, text: str | bytes) -> None:
    model_folder(tmp_path, config={})
    (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match="config.json .*save the model folder again"):
        resolve_model(str(tmp_path))


@pytest.mark.parametrize("name", ["smollm3", "", "./nowhere", "/no/such/folder", "a/b/c"])
def test_unknown_names_list_the_known_ones(name: str) -> None:
    with pytest.raises(DataError, match="smollm2-135m-instruct, tiny"):
        resolve_model(name)


def test_a_hub_that_cannot_be_reached_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(name: str, *, allow_patterns: list[str]) -> str:
        assert not any(pattern in ("*", "*.py", "*.bin") for pattern in allow_patterns)
        raise OSError(f"no route to fetch {name}")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(FetchError, match="owner/model.*no route.*offline, give the path of a model folder"):
        resolve_model("owner/model")


def test_tiny_is_made_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYWARD_CACHE", str(tmp_path))
    folder = Path(resolve_model("tiny"))
    assert folder == tmp_path / "models/tiny"
    assert resolve_model(str(folder)) == str(folder)


def test_the_digest_of_a_model_follows_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = model_digest(str(tmp_path))
    assert model_digest(str(tmp_path)) == before
    (tmp_path / "config.json").write_text("{ }")
    assert model_digest(str(tmp_path)) != before


def test_the_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(resolve_model("tiny"), folder)
    assert resolve_model(str(folder)) == str(folder)
    tokenizer = byte_tokenizer()
    num_rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    tokenizer.add_tokens([f"<more {index}>" for index in range(num_rows - len(tokenizer) + 2)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(DataError, match=rf"different models: the token '<more \d+>' has id {num_rows}, .*below {num_rows}"):
        resolve_model(str(folder))


def test_a_broken_tokenizer_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(resolve_model("tiny"), folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="tokenizer.json cannot be read"):
        resolve_model(str(folder))
