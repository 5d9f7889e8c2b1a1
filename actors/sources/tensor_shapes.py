"""Which files of a model folder hold its weights, and names and shapes of the tensors in them, read from headers alone."""

import json
from pathlib import Path

from cluster.errors import DataError

WEIGHT_PATTERN = "*.safetensors"
INDEX_NAME = "model.safetensors.index.json"  # names the files of a model in several; others beside them are not of the model

TensorShapes = dict[str, tuple[int, ...]]


def weight_files(folder: Path) -> list[Path]:
    """Of a Hugging Face folder, sorted: the files that its index names, or all where it has none.

    Raises `DataError` where it holds no weights, or lacks what the index names.
    """
    file_of_tensor = _weight_map(folder)
    if file_of_tensor is None:
        paths = sorted(folder.glob(WEIGHT_PATTERN))
        if not paths:
            raise DataError(
                f"{folder}: no {WEIGHT_PATTERN} files; generators need a local Hugging Face folder with safetensors weights"
            )
        return paths
    names = sorted(set(file_of_tensor.values()))
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise DataError(
                f"{folder / INDEX_NAME} names the file {name!r}, which is not in its folder; fetch or save the model again"
            )
    return [folder / name for name in names]


def folder_tensor_shapes(folder: Path) -> TensorShapes:
    """Of a Hugging Face folder: of what its index names, or of all tensors where it has none.

    Raises `DataError` where it holds no weights, lacks what the index names, or a file is cut off or none of its kind.
    """
    in_files = {path.name: tensor_shapes(path) for path in weight_files(folder)}
    file_of_tensor = _weight_map(folder)
    if file_of_tensor is None:
        return {tensor: shape for shapes in in_files.values() for tensor, shape in shapes.items()}
    missing = sorted(tensor for tensor, file in file_of_tensor.items() if tensor not in in_files[file])
    if missing:
        first = missing[0]
        raise DataError(
            f"{folder / INDEX_NAME} names {len(missing)} tensors that are not in their files, first {first!r} in "
            f"{file_of_tensor[first]}; fetch or save the model again"
        )
    return {tensor: in_files[file][tensor] for tensor, file in file_of_tensor.items()}


def tensor_shapes(path: Path) -> TensorShapes:
    """Of one file. Raises `DataError` for a file that is cut off or is none of its kind."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise DataError(f"{path}: not a whole safetensors file: {error}") from error


def differing_tensors(one: TensorShapes, other: TensorShapes) -> list[str]:
    """Sorted names of tensors that one of the two lacks, or that have another shape."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def _weight_map(folder: Path) -> dict[str, str] | None:
    """The file of each tensor, from the folder's index; None where it has none."""
    index_path = folder / INDEX_NAME
    if not index_path.is_file():
        return None
    try:
        file_of_tensor = json.loads(index_path.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{index_path} is no index of safetensors files: {error!r}; save the model folder again") from error
    if not isinstance(file_of_tensor, dict) or not all(isinstance(name, str) for name in file_of_tensor.values()):
        raise DataError(f"{index_path}: weight_map does not give the file of each tensor; save the model folder again")
    return file_of_tensor
