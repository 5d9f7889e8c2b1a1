"""What an endpoint knows of the versions of a run that it follows: which were served, which are set aside, and whose turn it is.

One file and two locks in a folder of the endpoint, for all its replicas, which run on one machine; nothing is written into the
run. What is known of a folder holds while its files stay as they are: a version that is exported again is new.
"""

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.errors import DataError
from cluster.storage.atomic_file import write_atomically
from cluster.storage.policy_folders import version_folders
from serving.config import ServeConfig
from serving.policy_folder import PolicyFolder, policy_folder
from serving.versions.policy_check import BadPolicyError, Reason, check_policy

logger = logging.getLogger("ray.serve")  # goes to the replica's file among Serve's logs


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowedVersion:
    """One version of the run. Produced by `FollowedVersions`, consumed by `Follower`."""

    policy: PolicyFolder
    signature: str  # of names, sizes and times of its files


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRecord:
    """What is known of a version. Lies in the file, by the name of the version's folder."""

    signature: str
    state: Literal["begun", "served", "set_aside"]
    num_tries: int = 0  # of replicas that began to take it
    reason: Reason | None = None  # of one that is set aside


class FollowedVersions:
    """The versions of one run, as the replicas of one endpoint see them."""

    def __init__(self, run_dir: Path, state_dir: Path) -> None:
        """`state_dir` of the endpoint is made where it does not exist."""
        self.run_dir = run_dir
        digest = hashlib.sha256(os.fsencode(run_dir.absolute())).hexdigest()[:12]
        self._file = state_dir / f"followed-{digest}.json"
        self._unwritten: dict[str, VersionRecord] = {}  # what a full disk did not take; this replica knows it all the same

    def newest(self, held: FollowedVersion | None) -> FollowedVersion | None:
        """What a replica should take that holds `held`: the newest version that is not set aside; None where it holds that.

        Raises `OSError` where the run directory cannot be read.
        """
        records = self._records()
        for _, folder in reversed(version_folders(self.run_dir / "policies")):
            version = _version(folder)
            record = records.get(folder.name)
            if record is None or record.signature != version.signature or record.state != "set_aside":
                return None if version == held else version
        return None

    def newest_served(self) -> FollowedVersion | None:
        """The newest version that a replica has served and that is still there as it was. Raises `OSError`."""
        records = self._records()
        for _, folder in reversed(version_folders(self.run_dir / "policies")):
            version = _version(folder)
            record = records.get(folder.name)
            if record is not None and record.signature == version.signature and record.state == "served":
                return version
        return None

    def set_aside(self) -> dict[str, Reason]:
        """Why versions of the run are not served, by folder."""
        return {name: record.reason for name, record in sorted(self._records().items()) if record.reason is not None}

    def note_begun(self, version: FollowedVersion) -> int:
        """A replica is about to take it; returns how many have been, this one counted, since its files last changed."""
        before = self._records().get(version.policy.path.name)
        if before is None or before.signature != version.signature:
            num_tries = 1
        elif before.state == "served":
            return 1  # by another replica: it is not the version that would lose this one
        else:
            num_tries = before.num_tries + 1
        self._note(version, VersionRecord(signature=version.signature, state="begun", num_tries=num_tries))
        return num_tries

    def note_served(self, version: FollowedVersion) -> None:
        """A replica has checked it and answers from it."""
        self._note(version, VersionRecord(signature=version.signature, state="served"))

    def note_set_aside(self, version: FollowedVersion, reason: Reason, detail: str) -> None:
        """No replica takes it again. `detail` goes to the log."""
        logger.error("not served, and set aside (%s): %s", reason, detail)
        self._note(version, VersionRecord(signature=version.signature, state="set_aside", reason=reason))

    @contextmanager
    def turn(self) -> Iterator[bool]:
        """Whether it is this replica's turn to change; another gets its own when the block ends, or this process does."""
        with _locked(self._file.with_suffix(".turn"), fcntl.LOCK_EX | fcntl.LOCK_NB) as is_ours:
            yield is_ours

    def _note(self, version: FollowedVersion, record: VersionRecord) -> None:
        """Those of folders that are gone are dropped."""
        self._unwritten[version.policy.path.name] = record
        try:
            with _locked(self._file.with_suffix(".lock"), fcntl.LOCK_EX):
                there = {folder.name for _, folder in version_folders(self.run_dir / "policies")}
                kept = {name: asdict(record) for name, record in self._records().items() if name in there}
                write_atomically(self._file, json.dumps(kept, indent=1) + "\n")
        except OSError as error:
            logger.error("what is known of policy versions is not written down: %s", error)
        else:
            self._unwritten.clear()

    def _records(self) -> dict[str, VersionRecord]:
        try:
            values: dict[str, Any] = json.loads(self._file.read_text(encoding="utf-8"))
            written = {name: VersionRecord(**value) for name, value in values.items()}
        except FileNotFoundError:
            written = {}
        except (ValueError, TypeError, AttributeError) as error:
            logger.error("%s is not readable and is begun anew: %s", self._file, error)
            written = {}
        return {**written, **self._unwritten}


def followed_by(config: ServeConfig, state_dir: Path) -> FollowedVersions:
    """The versions that an endpoint with these settings follows."""
    return FollowedVersions(Path(config.model).expanduser().resolve(), state_dir)


def first_version(versions: FollowedVersions) -> FollowedVersion:
    """What an endpoint or a new replica starts on: the newest version that was served, or else whose files have nothing wrong.

    Raises `DataError` where there is none, and `OSError`.
    """
    served = versions.newest_served()
    if served is not None:
        return served
    while (version := versions.newest(None)) is not None:
        try:
            check_policy(version.policy.path, None)
        except BadPolicyError as error:
            versions.note_set_aside(version, error.reason, str(error))
        else:
            return version
    raise DataError(
        f"{versions.run_dir} has no policy that can be served; set aside are {versions.set_aside() or 'none'}; has the run "
        "exported one yet? See export.every_num_steps"
    )


@contextmanager
def _locked(path: Path, operation: int) -> Iterator[bool]:
    """Whether the lock was got. The kernel takes it back from a process that ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, operation)
        except BlockingIOError:
            yield False
        else:
            yield True  # closing the file gives it back


def _version(folder: Path) -> FollowedVersion:
    found = sorted((entry.name, entry.stat()) for entry in os.scandir(folder))
    text = "".join(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0" for name, stat in found)
    return FollowedVersion(policy=policy_folder(folder), signature=hashlib.sha256(text.encode()).hexdigest()[:16])
