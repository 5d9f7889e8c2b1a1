"""Policies of a run, `policies/v000010`: whole when they appear, never overwritten, the oldest ones removed."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cluster.errors import DataError
from cluster.storage.atomic_file import write_errors_explained

VERSION_FOLDER = re.compile(r"v(\d+)")

# What a policy folder holds besides weights and config.json, by how the names begin.
TOKENIZER_FILES = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_template", "generation_config")
SENTENCEPIECE_SUFFIX = ".model"
OWN_NETWORK: Final = "rayward_"  # how `model_type` in config.json begins where no engine knows the network
# Those of a low-rank adapter, by peft's names; the tensors in the only form that is read, for the other one is a pickle.
ADAPTER_CONFIG: Final = "adapter_config.json"
ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"


def version_folder(policies: Path, policy_version: int) -> Path:
    """Where that version lies."""
    return policies / f"v{policy_version:06d}"


def version_folders(policies: Path) -> list[tuple[int, Path]]:
    """(version, folder), the oldest first."""
    found = []
    for folder in policies.iterdir():
        matched = VERSION_FOLDER.fullmatch(folder.name)
        if matched and folder.is_dir():
            found.append((int(matched.group(1)), folder))
    return sorted(found)


def remove_old_versions(policies: Path, *, keep: int) -> None:
    """Leave the newest `keep`. A version disappears whole; what a kill left of an earlier removal goes as well."""
    for _, folder in version_folders(policies)[:-keep]:
        folder.rename(folder.with_name(f".{folder.name}.removed"))
    for removed in policies.glob(".v*.removed"):
        shutil.rmtree(removed, ignore_errors=True)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """With what else belongs to a model and not to its weights. Raises `OSError`."""
    for file in source.iterdir():
        if file.is_file() and (file.name.startswith(TOKENIZER_FILES) or file.suffix == SENTENCEPIECE_SUFFIX):
            shutil.copy(file, folder / file.name)


@contextmanager
def new_folder(directory: Path) -> Iterator[Path]:
    """A draft to be filled inside, which becomes `directory` at the end: whole or not at all.

    Raises `DataError` where `directory` exists, and `NotWrittenError`.
    """
    if directory.exists():
        raise DataError(f"{directory}: exists already; a policy is never overwritten, give another folder")
    draft = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        with write_errors_explained(directory):
            draft.mkdir(parents=True)
            yield draft
            draft.rename(directory)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)  # of a full disk, above all
        raise
