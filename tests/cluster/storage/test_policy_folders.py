"""Policies of a run: whole when they appear, the oldest removed."""

from pathlib import Path

import pytest

from cluster.errors import DataError, NotWrittenError
from cluster.storage.policy_folders import new_folder, remove_old_versions, version_folder, version_folders


def test_a_new_folder_appears_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "v000001") as draft:
        (draft / "config.json").write_text("{}")
        assert version_folders(tmp_path) == []
    assert [path.name for path in (tmp_path / "v000001").iterdir()] == ["config.json"]
    with pytest.raises(DataError, match="never overwritten"), new_folder(tmp_path / "v000001"):
        pytest.fail("it exists already")


def test_a_folder_that_could_not_be_filled_leaves_nothing(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        with new_folder(folder) as draft:
            (draft / "part").write_text("some")
            raise OSError(28, "No space left on device")

    with pytest.raises(NotWrittenError, match="v000001 could not be written"):
        fill(tmp_path / "v000001")
    assert not list(tmp_path.iterdir())


def test_the_newest_versions_are_kept_by_number(tmp_path: Path) -> None:
    for version in (999_999, 1_000_000, 3):
        version_folder(tmp_path, version).mkdir()
    (tmp_path / ".v000001.removed").mkdir()  # of a removal that was killed
    (tmp_path / "notes").mkdir()
    remove_old_versions(tmp_path, keep=2)
    assert [version for version, _ in version_folders(tmp_path)] == [999_999, 1_000_000]
    assert {path.name for path in tmp_path.iterdir()} == {"v999999", "v1000000", "notes"}
