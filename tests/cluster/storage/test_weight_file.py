"""A published file is trusted where nothing has touched it, and read whole where anything has."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.errors import WeightMismatchError, WeightsLostError
from cluster.storage.weight_file import check_weights, seal_weights
from cluster.types import WeightFile

CONTENT = b"weights" * 100


@pytest.fixture
def published(tmp_path: Path) -> WeightFile:
    partial = tmp_path / "partial"
    partial.write_bytes(CONTENT)
    return seal_weights(partial, tmp_path / "weights", policy_version=3, node_id="")


def cut_off(path: Path) -> None:
    os.truncate(path, len(CONTENT) - 1)


def written_to(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"W")


def written_to_under_its_old_time(path: Path) -> None:
    before = path.stat()
    written_to(path)
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # older kernels count time in ticks of milliseconds
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(CONTENT.swapcase())
    other.rename(path)


@pytest.mark.parametrize("damage", [cut_off, written_to, written_to_under_its_old_time, replaced])
def test_a_file_that_is_not_what_was_published_is_refused(published: WeightFile, damage: Callable[[Path], None]) -> None:
    check_weights(published)
    damage(Path(published.path))
    with pytest.raises(WeightMismatchError, match=f"version 3 was published with {published.checksum}"):
        check_weights(published)


def test_a_copy_is_what_was_published(published: WeightFile) -> None:
    path = Path(published.path)
    shutil.copy(path, path.with_name("copy"))
    path.with_name("copy").rename(path)
    check_weights(published)


def test_a_file_that_is_gone_is_lost(published: WeightFile) -> None:
    Path(published.path).unlink()
    with pytest.raises(WeightsLostError, match="published weights of version 3 cannot be read"):
        check_weights(published)
