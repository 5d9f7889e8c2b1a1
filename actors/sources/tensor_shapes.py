"""Names and shapes of the tensors in safetensors files, read from their headers alone."""

from pathlib import Path

from cluster.errors import DataError

WEIGHT_PATTERN = "*.safetensors"

TensorShapes = dict[str, tuple[int, ...]]


def folder_tensor_shapes(folder: Path) -> TensorShapes:
    """Of a Hugging Face folder. Raises `DataError` where it holds no weights, or a file that is cut off or none of its kind."""
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


def differing_tensors(one: TensorShapes, other: TensorShapes) -> list[str]:
    """Sorted names of tensors that one of the two lacks, or that have another shape."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
