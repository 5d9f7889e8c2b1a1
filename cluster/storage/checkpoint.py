"""Checkpoints that cannot lie: folders of plain files with a manifest of their digests, whole or absent.

A folder is written under another name, its manifest last, everything flushed to disk, and only then renamed to `step-000010`.
The newest is found by reading manifests; no pointer file can be torn. What a checkpoint holds is its writer's business.

The first one leaves a mark beside the folder. So a folder that was moved away is told from one that no checkpoint has reached
yet: with the first, training must not begin again; with the second, it may.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict

from cluster.config import StrictConfig
from cluster.errors import CannotResumeError
from cluster.storage.atomic_file import sync_directory, write_atomically

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
MANIFEST_NAME = "MANIFEST.json"
FOLDER_NAME = re.compile(r"step-(\d{6,})")
PARTIAL_PREFIX = "tmp-"
MARK_PREFIX = "written-"  # not the folder's own name first: `mv checkpoints*` leaves it


class FileRecord(StrictConfig):
    """One file of a checkpoint."""

    model_config = ConfigDict(strict=True)

    num_bytes: int
    sha256: str


class Manifest(StrictConfig):
    """What a checkpoint is, and what its files must be."""

    model_config = ConfigDict(strict=True)

    schema_version: int
    step: int
    """Steps completed, which is the number of the step to go on with."""
    policy_version: int
    """Optimizer steps completed."""
    facts: dict[str, str]
    """What must be the same where training goes on, for example the digest of the configuration."""
    files: dict[str, FileRecord]

    def to_bytes(self) -> bytes:
        """The manifest as a file that guards itself: any change of a byte shows in its digest, or in how it is written."""
        values = self.model_dump(mode="json")
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
        return json.dumps({"digest": digest, **values}, indent=1).encode() + b"\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint on disk. Produced by `CheckpointFolder`, consumed by whoever restores it."""

    path: Path
    manifest: Manifest

    def check_facts(self, facts: Mapping[str, str]) -> None:
        """Raise `CannotResumeError` where it was written under other facts."""
        written = self.manifest.facts
        changes = [
            f"{name} was {written.get(name)}, is {fact}" for name, fact in sorted(facts.items()) if written.get(name) != fact
        ]
        if changes:
            raise CannotResumeError(
                f"{self.path} was written under other facts: {'; '.join(changes)}; put them back, or resume with --fresh"
            )


class DamagedCheckpointError(CannotResumeError):
    """A checkpoint is not what its manifest says; the message names the file, what was expected and what was found."""


class CheckpointFolder:
    """The checkpoints of one run. One process writes at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._mark = directory.with_name(f"{MARK_PREFIX}{directory.name}")

    def write(
        self, step: int, *, policy_version: int, facts: Mapping[str, str], write_files: Callable[[Path], None]
    ) -> Checkpoint:
        """Add the checkpoint of a step, or leave nothing behind. `write_files` fills the folder that it is given.

        A checkpoint of the same step is replaced: it was damaged, or training went back behind it.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        partial = self._directory / f"{PARTIAL_PREFIX}{step:06d}-{uuid.uuid4().hex[:8]}"
        partial.mkdir()
        try:
            write_files(partial)
            manifest = Manifest(
                schema_version=SCHEMA_VERSION,
                step=step,
                policy_version=policy_version,
                facts=dict(facts),
                files={file.name: _recorded(file) for file in sorted(partial.iterdir())},
            )
            (partial / MANIFEST_NAME).write_bytes(manifest.to_bytes())
            for file in partial.iterdir():
                _sync_file(file)
            sync_directory(partial)
            path = self._directory / f"step-{step:06d}"
            if path.exists():
                path.rename(partial.with_name(f"{partial.name}-replaced"))
            partial.rename(path)
            sync_directory(self._directory)
            if not self._mark.exists():
                write_atomically(self._mark, f"Checkpoints were written to {self._directory}. The run goes on from there only.\n")
        finally:
            self.remove_partial()
        return Checkpoint(path=path, manifest=manifest)

    def newest_intact(self) -> Checkpoint | None:
        """The newest checkpoint whose every file is what its manifest says; None where none was ever completed.

        Damaged ones are logged and passed over. Raises `CannotResumeError` where all are damaged, or were taken away.
        """
        problems = []
        for path in self._newest_first():
            try:
                checkpoint = verified(path)
            except DamagedCheckpointError as error:
                logger.warning("checkpoint passed over: %s", error)
                problems.append(str(error))
            else:
                return checkpoint
        if problems:
            raise CannotResumeError(
                "\n".join(
                    [*problems, f"no checkpoint in {self._directory} is intact; resume with --fresh to start again from step 0"]
                )
            )
        if self._mark.exists():
            raise CannotResumeError(
                f"{self._directory} holds no checkpoint, but {self._mark.name} says that it did; put the folder back, or resume "
                "with --fresh to start again from step 0"
            )
        return None

    def remove(self) -> None:
        """Remove all checkpoints: what they were for is done. Killed at any instant, it leaves intact ones or none."""
        self._mark.unlink(missing_ok=True)
        for path in list(self._newest_first()):
            path.rename(path.with_name(f"{PARTIAL_PREFIX}{path.name}"))
        shutil.rmtree(self._directory, ignore_errors=True)

    def verified(self, step: int) -> Checkpoint:
        """The checkpoint of a step. Raises `DamagedCheckpointError`."""
        return verified(self._directory / f"step-{step:06d}")

    def listed(self, step: int) -> Checkpoint:
        """The checkpoint of a step, by its manifest alone: for who knows that its files were verified."""
        path = self._directory / f"step-{step:06d}"
        return Checkpoint(path=path, manifest=_read_manifest(path / MANIFEST_NAME))

    def prune(self, *, keep: int) -> None:
        """Remove all but the newest `keep`."""
        for path in list(self._newest_first())[keep:]:
            shutil.rmtree(path, ignore_errors=True)

    def discard_after(self, step: int) -> None:
        """Remove checkpoints of later steps: training goes on from `step`, and they belong to a past that is given up."""
        for path in list(self._newest_first()):
            if _step_of(path) > step:
                shutil.rmtree(path)

    def remove_partial(self) -> None:
        """Remove what a killed or failed writer left behind."""
        for path in self._directory.glob(f"{PARTIAL_PREFIX}*"):
            shutil.rmtree(path, ignore_errors=True)

    def _newest_first(self) -> Iterator[Path]:
        if self._directory.is_dir():
            found = [path for path in self._directory.iterdir() if FOLDER_NAME.fullmatch(path.name)]
            yield from sorted(found, key=_step_of, reverse=True)


def verified(path: Path) -> Checkpoint:
    """Read a checkpoint's manifest and compare every file with it. Raises `DamagedCheckpointError`."""
    manifest_path = path / MANIFEST_NAME
    manifest = _read_manifest(manifest_path)
    if manifest.schema_version != SCHEMA_VERSION:
        raise DamagedCheckpointError(
            f"{manifest_path}: has schema version {manifest.schema_version}, this Rayward reads {SCHEMA_VERSION}; "
            "resume with the version that wrote it"
        )
    for name, expected in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise DamagedCheckpointError(f"{file}: is missing; expected {expected.num_bytes} bytes")
        found = _recorded(file)
        if found != expected:
            raise DamagedCheckpointError(
                f"{file}: expected {expected.num_bytes} bytes with sha256 {expected.sha256}, "
                f"found {found.num_bytes} bytes with {found.sha256}"
            )
    return Checkpoint(path=path, manifest=manifest)


def _read_manifest(path: Path) -> Manifest:
    try:
        content = path.read_bytes()
        values = json.loads(content)
        values.pop("digest")
        manifest = Manifest.model_validate(values)
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise DamagedCheckpointError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    if manifest.to_bytes() != content:
        raise DamagedCheckpointError(f"{path}: is not what was written; its digest does not match")
    return manifest


def _recorded(file: Path) -> FileRecord:
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return FileRecord(num_bytes=file.stat().st_size, sha256=digest)


def _step_of(path: Path) -> int:
    match = FOLDER_NAME.fullmatch(path.name)
    assert match is not None, "only such folders are listed"
    return int(match.group(1))


def _sync_file(file: Path) -> None:
    with file.open("rb") as content:
        os.fsync(content.fileno())
