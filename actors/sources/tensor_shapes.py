"""Names and shapes of the tensors in safetensors files, read from their headers alone."""

import json
from pathlib import Path

from cluster.errors import DataError

WEIGHT_PATTERN = "*.safetensors"
INDEX_NAME = "model.safetensors.index.json"  # names the files of a model in several; others beside them are not of the model

TensorShapes = dict[str, tuple[int, ...]]


def folder_tensor_shapes(folder: Path) -> TensorShapes:
    """Of a Hugging Face folder: of the files that its index names, or of all where it has none.

    Raises `DataError` where it holds no weights, lacks what the index names, or a file is cut off or none of its kind.
    """
    index_path = folder / INDEX_NAME
    if index_path.is_file():
        return _indexed_shapes(index_path)
    shapes: TensorShapes = {}
    for path in sorted(folder.glob(WEIGHT_PATTERN)):
        shapes |= tensor_shapes(path)
    if not shapes:
        raise DataError(
            f"{folder}: no {WEIGHT_PATTERN} files; generators need a local Hugging Face folder with safetensors weights"
        )
    return shapes


def tensor_shapes(path: Path) -> TensorShapes:
    """Of one file. Raises `DataError` for a file that is cut off or is none of its kind."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise DataError(f"{path}: not a whole safetensors file: {error}") from error


def _indexed_shapes(index_path: Path) -> TensorShapes:
    file_of_tensor = _weight_map(index_path)
    in_files: dict[str, TensorShapes] = {}
    for name in sorted(set(file_of_tensor.values())):
        if Path(name).name != name or not (index_path.parent / name).is_file():
            raise DataError(f"{index_path} names the file {name!r}, which is not in its folder; fetch or save the model again")
        in_files[name] = tensor_shapes(index_path.parent / name)
    missing = sorted(tensor for tensor, file in file_of_tensor.items() if tensor not in in_files[file])
    if missing:
        first = missing[0]
        raise DataError(
            f"{index_path} names {len(missing)} tensors that are not in their files, first {first!r} in {file_of_tensor[first]}; "
            "fetch or save the model again"
        )
    return {tensor: in_files[file][tensor] for tensor, file in file_of_tensor.items()}


def _weight_map(index_path: Path) -> dict[str, str]:
    try:
        file_of_tensor = json.loads(index_path.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{index_path} is no index of safetensors files: {error!r}; save the model folder again") from error
    if not isinstance(file_of_tensor, dict) or not all(isinstance(name, str) for name in file_of_tensor.values()):
        raise DataError(f"{index_path}: weight_map does not give the file of each tensor; save the model folder again")
    return file_of_tensor


def differing_tensors(one: TensorShapes, other: TensorShapes) -> list[str]:
    """Sorted names of tensors that one of the two lacks, or that have another shape."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
