"""Published weights in a file: the bytes are hashed once a host, by the process that wrote them.

A file that nothing has touched since then, as the kernel sees it, needs no second hash. Any other does: one that was cut off,
written to, replaced, or copied from another host. The kernel does not see writes through a mapping that is older than the hash;
the writer makes none.
"""

import hashlib
import os
import time
from contextlib import suppress
from io import BufferedReader
from pathlib import Path

from cluster.errors import WeightMismatchError, WeightsLostError
from cluster.types import FileStamp, WeightFile


def seal_weights(partial: Path, path: Path, *, policy_version: int, node_id: str) -> WeightFile:
    """Move a complete file to `path`, with what readers need to know of it. `node_id`: of this process."""
    with partial.open("rb") as file:
        # The kernel's own time of a write is a few milliseconds coarse: one that came right after would not change it.
        os.utime(file.fileno(), ns=(time.time_ns(), time.time_ns()))
        checksum = _sha256(file)
        partial.rename(path)
        return WeightFile(policy_version=policy_version, node_id=node_id, path=str(path), checksum=checksum, stamp=stamp_of(file))


def check_weights(weights: WeightFile) -> None:
    """Raise `WeightMismatchError` unless the file holds the bytes that were published, `WeightsLostError` where it is gone."""
    try:
        with open(weights.path, "rb") as file:
            checksum = weights.checksum if stamp_of(file) == weights.stamp else _sha256(file)
    except OSError as error:
        raise WeightsLostError(f"published weights of version {weights.policy_version} cannot be read: {error}") from error
    if checksum != weights.checksum:
        raise WeightMismatchError(
            f"{weights.path} has sha256 {checksum}, but version {weights.policy_version} was published with {weights.checksum}; "
            "the generator keeps its weights"
        )


def remove_earlier_versions(folder: Path, *, before_s: float) -> None:
    """Remove what was published into the folder before this time, whole or not."""
    for path in folder.glob("*policy-v*"):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < before_s:
                path.unlink()


def stamp_of(file: BufferedReader) -> FileStamp:
    """Of an open file, as it is now."""
    status = os.fstat(file.fileno())
    return FileStamp(
        device=status.st_dev,
        inode=status.st_ino,
        num_bytes=status.st_size,
        modified_ns=status.st_mtime_ns,
        changed_ns=status.st_ctime_ns,
    )


def _sha256(file: BufferedReader) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()
