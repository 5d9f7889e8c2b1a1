"""Keys of clients, in one file that its owner alone can read: a name, the SHA-256 of the key, its scopes, and when it was made.

A key is 256 random bits, so its plain hash gives nothing away. The key itself is shown once, when it is made. A file that others
can read or write is refused, and so is a broken one: then no key is good.
"""

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from cluster.errors import ConfigError, DataError
from cluster.storage.atomic_file import write_atomically

KEY_PREFIX: Final = "rk_"
KEY_BYTES: Final = 32
KEY_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
SHA256: Final = re.compile(r"[0-9a-f]{64}")
INFERENCE: Final = "inference"  # ask the policy
FEEDBACK: Final = "feedback"  # post preferences
SCOPES: Final = (FEEDBACK, INFERENCE)
OWNER_ONLY: Final = 0o600
MAX_FILE_BYTES: Final = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One line of `rayward keys list`. Produced by `read_keys`."""

    name: str
    sha256: str  # hexadecimal, of the whole key with its prefix
    created_s: int  # seconds since 1970
    scopes: tuple[str, ...]  # of SCOPES: the routes that it opens


class KeyFile:
    """The keys that are good now. The file is read again when it has changed, so a key is added or revoked without a restart."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_at: tuple[int, int, int] | None = None
        self._keys: tuple[Key, ...] = ()

    def find(self, presented: str) -> Key | None:
        """The record of a key; None where it is none. Takes as long for a wrong one. Raises `DataError`: see `read_keys`."""
        digest = hashlib.sha256(presented.encode("utf-8", "surrogateescape")).hexdigest()
        found = None
        for key in self._current():
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found

    def _current(self) -> tuple[Key, ...]:
        try:
            status = self.path.stat()
        except OSError as error:
            raise DataError(f"the file of keys {self.path} cannot be read: {error.strerror}") from error
        read_at = (status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        if read_at != self._read_at:
            self._keys = read_keys(self.path)
            self._read_at = read_at
        return self._keys


def default_key_file() -> Path:
    """`rayward/keys.json` in the folder of the user's settings."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "rayward" / "keys.json"


def read_keys(path: Path) -> tuple[Key, ...]:
    """All keys. Raises `DataError` for a file that is not there, that others can open, or that is damaged."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DataError(
            f"the file of keys {path} cannot be read: {error.strerror}; make one with: rayward keys add NAME"
        ) from error
    with os.fdopen(descriptor, "rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & ~OWNER_ONLY:
            raise DataError(f"the file of keys {path} has mode {mode:04o}, so others can open it; run: chmod 600 {path}")
        content = file.read(MAX_FILE_BYTES + 1)
    try:
        return tuple(_key(entry) for entry in json.loads(content)["keys"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"the file of keys {path} is damaged; make it anew with: rayward keys add NAME") from error


def add_key(path: Path, name: str, scopes: Sequence[str] = SCOPES) -> str:
    """Make a key, keep its hash under `name`, and return the key: nobody can read it again. Raises `ConfigError`."""
    if not KEY_NAME.fullmatch(name):
        raise ConfigError(f"the name {name[:80]!r} of a key must match {KEY_NAME.pattern}")
    if not scopes or not set(scopes) <= set(SCOPES):
        raise ConfigError(f"the scopes {list(scopes)} of a key must be among {', '.join(SCOPES)}")
    key = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    with _changed(path) as keys:
        if any(known.name == name for known in keys):
            raise ConfigError(f"{path} has a key {name!r}; revoke it first, or choose another name")
        digest = hashlib.sha256(key.encode()).hexdigest()
        keys.append(Key(name=name, sha256=digest, created_s=int(time.time()), scopes=tuple(sorted(set(scopes)))))
    return key


def revoke_key(path: Path, name: str) -> None:
    """Forget a key; an endpoint refuses it from its next request on. Raises `ConfigError` where there is none of that name."""
    with _changed(path) as keys:
        kept = [key for key in keys if key.name != name]
        if len(kept) == len(keys):
            raise ConfigError(f"{path} has no key {name!r}; known are {', '.join(key.name for key in keys) or 'none'}")
        keys[:] = kept


@contextmanager
def _changed(path: Path) -> Iterator[list[Key]]:
    """The keys, for the block to change; one process at a time. A reader sees the old file or the new one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(path.with_name(f".{path.name}.lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, OWNER_ONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        keys = list(read_keys(path)) if path.exists() else []
        yield keys
        content = json.dumps({"keys": [asdict(key) for key in keys]}, indent=2)
        write_atomically(path, content, mode=OWNER_ONLY)
    finally:
        os.close(lock)


def _key(entry: dict[str, Any]) -> Key:
    key = Key(
        name=entry["name"], sha256=entry["sha256"], created_s=int(entry["created_s"]), scopes=tuple(map(str, entry["scopes"]))
    )
    if not KEY_NAME.fullmatch(key.name) or not SHA256.fullmatch(key.sha256) or not set(key.scopes) <= set(SCOPES):
        raise ValueError
    return key
