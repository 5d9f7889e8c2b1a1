"""The files and tensors of a model folder: those of its index, and no others."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from actors.sources.tensor_shapes import folder_tensor_shapes, weight_files
from cluster.errors import DataError

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model in two files, and the same weights once more as its authors published them, under other names."""
    save_file({"a": np.zeros((2, 3), np.float32)}, tmp_path / FIRST)
    save_file({"b": np.zeros(4, np.float32)}, tmp_path / SECOND)
    save_file({"layers.0.a": np.zeros((2, 3), np.float32), "b": np.zeros(5, np.float32)}, tmp_path / "consolidated.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {"a": FIRST, "b": SECOND}}))
    return tmp_path


def test_only_files_that_the_index_names_are_of_the_model(folder: Path) -> None:
    assert weight_files(folder) == [folder / FIRST, folder / SECOND]
    assert folder_tensor_shapes(folder) == {"a": (2, 3), "b": (4,)}


def test_without_an_index_all_files_are(folder: Path) -> None:
    (folder / INDEX).unlink()
    (folder / "consolidated.safetensors").unlink()
    assert weight_files(folder) == [folder / FIRST, folder / SECOND]
    assert folder_tensor_shapes(folder) == {"a": (2, 3), "b": (4,)}


@pytest.mark.parametrize(
    ("index", "problem"),
    [
        ("{", "is no index"),
        ("[]", "is no index"),
        ("{}", "is no index"),
        ('{"weight_map": []}', "does not give the file"),
        ('{"weight_map": {"a": 1}}', "does not give the file"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "names the file 'gone.safetensors', which is not in its folder"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "names the file '../x.safetensors', which is not in its folder"),
        (
            json.dumps({"weight_map": {"a": FIRST, "c": SECOND}}),
            f"names 1 tensors that are not in their files, first 'c' in {SECOND}",
        ),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_refused(folder: Path, index: str, problem: str) -> None:
    (folder / INDEX).write_text(index)
    with pytest.raises(DataError, match=problem):
        folder_tensor_shapes(folder)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \*\.safetensors files"):
        weight_files(tmp_path)
