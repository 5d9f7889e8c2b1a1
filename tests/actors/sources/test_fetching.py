"""Cached folders appear whole, are built once, and a package that is not the pinned one is refused."""

import dataclasses
import hashlib
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from actors.sources import fetching
from actors.sources.fetching import MANIFEST_NAME, PackageFile, cached, cached_folder, downloaded
from cluster.errors import FetchError

CONTENT = b"weights"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYWARD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Builder:
    """Fills a folder and counts how often it was asked to."""

    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(self, folder: Path) -> None:
        self.num_calls += 1
        (folder / "a.bin").write_bytes(CONTENT)


def package(content: bytes) -> PackageFile:
    return PackageFile(
        package="thing", version="1.0", filename="thing-1.0-py3-none-any.whl", sha256=hashlib.sha256(content).hexdigest()
    )


def test_folder_is_built_once_and_has_a_manifest(cache: Path) -> None:
    builder = Builder()
    first = cached_folder("models/a", source="s", build=builder)
    assert cached_folder("models/a", source="s", build=builder) == first == cache / "models/a"
    assert builder.num_calls == 1
    manifest = json.loads((first / MANIFEST_NAME).read_text())
    assert manifest == {"source": "s", "files": {"a.bin": {"sha256": hashlib.sha256(CONTENT).hexdigest(), "bytes": 7}}}


def test_what_is_cached_is_told_without_building(cache: Path) -> None:
    assert cached("models/a", source="s") == {"is_fetched": False, "path": None, "bytes": None}
    folder = cached_folder("models/a", source="s", build=Builder())
    num_bytes = len(CONTENT) + (folder / MANIFEST_NAME).stat().st_size
    assert cached("models/a", source="s") == {"is_fetched": True, "path": str(folder), "bytes": num_bytes}
    assert cached("models/a", source="newer")["is_fetched"] is False


@pytest.mark.parametrize("damage", ["truncate", "delete", "manifest", "source"])
def test_incomplete_folder_is_built_again(damage: str) -> None:
    builder = Builder()
    folder = cached_folder("a", source="old", build=builder)
    if damage == "truncate":
        (folder / "a.bin").write_bytes(b"w")
    elif damage == "delete":
        (folder / "a.bin").unlink()
    elif damage == "manifest":
        (folder / MANIFEST_NAME).write_text("[")
    cached_folder("a", source="new" if damage == "source" else "old", build=builder)
    assert builder.num_calls == 2
    assert (folder / "a.bin").read_bytes() == CONTENT


def test_a_failed_build_leaves_nothing(cache: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half.bin").write_bytes(b"")
        raise FetchError("no")

    with pytest.raises(FetchError, match="no"):
        cached_folder("a", source="s", build=fail)
    assert list(cache.iterdir()) == []


def test_the_faster_of_two_builders_wins() -> None:
    slow, fast = Builder(), Builder()

    def overtaken(folder: Path) -> None:
        cached_folder("a", source="s", build=fast)
        slow(folder)

    folder = cached_folder("a", source="s", build=overtaken)
    assert (folder / "a.bin").read_bytes() == CONTENT
    assert (slow.num_calls, fast.num_calls) == (1, 1)


def test_a_file_put_into_downloads_is_used_without_pip(cache: Path) -> None:
    wanted = package(CONTENT)
    (cache / "downloads").mkdir(parents=True)
    (cache / "downloads" / wanted.filename).write_bytes(CONTENT)
    with downloaded(wanted) as path:
        assert path.read_bytes() == CONTENT


def test_another_content_is_refused(cache: Path) -> None:
    wanted = package(b"other")
    (cache / "downloads").mkdir(parents=True)
    (cache / "downloads" / wanted.filename).write_bytes(CONTENT)
    with pytest.raises(FetchError, match=f"thing==1.0 has sha256 {hashlib.sha256(CONTENT).hexdigest()}"), downloaded(wanted):
        pass


def source_package(folder: Path, *, canary: Path) -> PackageFile:
    """A package index with one source package, whose setup.py leaves a file behind when it runs."""
    setup = f"import pathlib\npathlib.Path({str(canary)!r}).touch()\n"
    setup += "import setuptools\nsetuptools.setup(name='thing', version='1.0')\n"
    (folder / "thing-1.0").mkdir(parents=True)
    (folder / "thing-1.0" / "setup.py").write_text(setup)
    (folder / "thing-1.0" / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
    archive = folder / "thing-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder / "thing-1.0", arcname="thing-1.0")
    return PackageFile(
        package="thing", version="1.0", filename=archive.name, sha256=hashlib.sha256(archive.read_bytes()).hexdigest()
    )


def test_a_package_that_was_tampered_with_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = tmp_path / "the setup.py ran"
    found = source_package(tmp_path / "index", canary=canary)
    settings = {"CONFIG_FILE": os.devnull, "NO_INDEX": "1", "FIND_LINKS": str(tmp_path / "index"), "NO_BUILD_ISOLATION": "0"}
    for name, value in settings.items():  # NO_BUILD_ISOLATION: the opposite of what it says; there is nothing to build with
        monkeypatch.setenv(f"PIP_{name}", value)
    pinned = dataclasses.replace(found, sha256=hashlib.sha256(b"what the authors published").hexdigest())
    with pytest.raises(FetchError, match=f"DO NOT MATCH THE HASHES.*Got +{found.sha256}"), downloaded(pinned):
        pass
    assert not canary.exists()
    with downloaded(found) as path:
        assert path.name == "thing-1.0.tar.gz"


def test_failing_pip_is_quoted_with_the_way_round(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def fail(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(
            command, 1, "", "WARNING: retry\nERROR: No matching distribution found for thing==1.0\n"
        )

    monkeypatch.setattr(fetching.subprocess, "run", fail)
    with pytest.raises(FetchError) as caught, downloaded(package(CONTENT)):
        pass
    assert str(caught.value).startswith(
        "pip could not download thing==1.0: ERROR: No matching distribution found for thing==1.0; "
    )
    assert f"put thing-1.0-py3-none-any.whl (sha256 {package(CONTENT).sha256}) into {cache / 'downloads'}" in str(caught.value)
