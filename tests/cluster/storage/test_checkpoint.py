"""Checkpoints: whole or absent, found newest first, and never believed when a byte of them is wrong."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.errors import CannotResumeError
from cluster.storage.checkpoint import CheckpointFolder, DamagedCheckpointError, verified

FILES = ("learner.safetensors", "state.json", "MANIFEST.json")


def write(folder: CheckpointFolder, step: int, *, content: bytes = b"weights" * 100) -> None:
    def write_files(path: Path) -> None:
        (path / "learner.safetensors").write_bytes(content + str(step).encode())
        (path / "state.json").write_text(f'{{"step": {step}}}')

    folder.write(step, policy_version=2 * step, facts={"config": "abc"}, write_files=write_files)


def delete(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = (delete, empty, cut, flip)


def test_a_checkpoint_comes_back_as_it_was_written(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints")
    assert folder.newest_intact() is None  # nothing was ever written
    write(folder, 5)
    write(folder, 10)
    found = folder.newest_intact()
    assert found is not None
    assert found.path == tmp_path / "checkpoints" / "step-000010"
    assert (found.manifest.step, found.manifest.policy_version, found.manifest.facts) == (10, 20, {"config": "abc"})
    assert sorted(found.manifest.files) == ["learner.safetensors", "state.json"]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_the_newest_intact_one_is_used_and_the_damaged_file_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Callable[[Path], None]
) -> None:
    folder = CheckpointFolder(tmp_path)
    write(folder, 5)
    write(folder, 10)
    damage(tmp_path / "step-000010" / name)
    with caplog.at_level(logging.WARNING, logger="cluster.storage.checkpoint"):
        found = folder.newest_intact()
    assert found is not None
    assert found.manifest.step == 5
    assert str(tmp_path / "step-000010" / name) in caplog.text
    with pytest.raises(DamagedCheckpointError):
        verified(tmp_path / "step-000010")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_none_intact_is_never_a_fresh_start(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    folder = CheckpointFolder(tmp_path)
    write(folder, 5)
    damage(tmp_path / "step-000005" / name)
    with pytest.raises(CannotResumeError, match="--fresh") as caught:
        folder.newest_intact()
    assert str(tmp_path / "step-000005" / name) in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_change_of_any_byte_of_the_manifest_is_seen(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    write(folder, 5)
    manifest = tmp_path / "step-000005" / "MANIFEST.json"
    content = manifest.read_bytes()
    for index in range(len(content)):
        changed = bytearray(content)
        changed[index] ^= 1
        manifest.write_bytes(changed)
        with pytest.raises(DamagedCheckpointError):
            verified(manifest.parent)


def test_a_failed_write_leaves_the_old_ones_and_nothing_else(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    write(folder, 5)

    def fail(path: Path) -> None:
        (path / "half").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        folder.write(10, policy_version=0, facts={}, write_files=fail)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000005"]
    assert folder.newest_intact() is not None


def test_pruning_keeps_the_newest(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    for step in (5, 10, 1_000_000):
        write(folder, step)
    folder.prune(keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000010", "step-1000000"]


def test_going_back_gives_up_what_came_later(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    for step in (5, 10, 15):
        write(folder, step)
    folder.discard_after(10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000005", "step-000010"]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    write(folder, 5)
    flip(tmp_path / "step-000005" / "state.json")
    write(folder, 5, content=b"again")
    assert folder.newest_intact() is not None
    assert [path.name for path in tmp_path.iterdir()] == ["step-000005"]


def test_checkpoints_that_were_taken_away_are_missed(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints")
    write(folder, 5)
    (tmp_path / "checkpoints").rename(tmp_path / "elsewhere")
    with pytest.raises(CannotResumeError, match="checkpoints holds no checkpoint, but written-checkpoints says that it did"):
        folder.newest_intact()


def test_checkpoints_that_are_no_longer_needed_are_not_missed(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints")
    write(folder, 5)
    folder.remove()
    assert folder.newest_intact() is None
    assert list(tmp_path.iterdir()) == []


def test_a_removal_that_is_killed_leaves_nothing_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints")
    write(folder, 5)
    monkeypatch.setattr(shutil, "rmtree", lambda path, ignore_errors: next(Path(path).rglob("*.json")).unlink())
    folder.remove()
    assert folder.newest_intact() is None
