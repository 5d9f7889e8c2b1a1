"""Files that are whole or absent, whatever happens while they are written."""

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.errors import NotWrittenError

NO_SPACE_ERRORS = (errno.ENOSPC, errno.EDQUOT)
BYTES_PER_MIB = 2**20


def write_atomically(path: Path, content: str | bytes, *, mode: int = 0o644) -> None:
    """Replace `path` by `content` (text as UTF-8). A reader, or a kill at any instant, sees the old file or the new one.

    `mode`: permissions of the file; a run directory is for colleagues to read. Raises `NotWrittenError`.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    with write_errors_explained(path):
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                os.fchmod(file.fileno(), mode)  # mkstemp makes 0600
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def append_line(path: Path, line: str) -> None:
    """Add one line to a file, or nothing: what does not fit on the disk is taken back. Raises `NotWrittenError`."""
    data = f"{line}\n".encode()
    with write_errors_explained(path), path.open("ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            while data:
                data = data[file.write(data) :]
        except BaseException:
            if file.tell() > size:
                file.truncate(size)
            raise


def cut_torn_line(path: Path) -> str:
    """Cut the last line of a JSON-lines file where a lost machine or a full disk left only its beginning.

    Returns one sentence about what was cut; empty where the file is whole.
    """
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        if file.read() in (b"\n", b""):
            return ""
        file.seek(0)
        content = file.read()
        torn = content.rpartition(b"\n")[2]
        if _is_json(torn):  # only its newline is missing
            file.write(b"\n")
            return ""
        file.truncate(size - len(torn))
        os.fsync(file.fileno())
    number = content.count(b"\n") + 1
    return f"{path}:{number}: the last line is torn; its {len(torn)} bytes are cut"


@contextmanager
def write_errors_explained(path: Path) -> Iterator[None]:
    """What goes wrong with the file inside raises `NotWrittenError`: the path, the reason, and how much space is left."""
    try:
        yield
    except OSError as error:
        remedy = "free some space" if error.errno in NO_SPACE_ERRORS else "make the folder writable"
        free_mib = _free_bytes(path) / BYTES_PER_MIB
        raise NotWrittenError(
            f"{path} could not be written: {error.strerror or error}; {free_mib:.1f} MiB are free on its file system; {remedy}, "
            "then resume the run"
        ) from error


def sync_directory(directory: Path) -> None:
    """Make the rename itself durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free_bytes(path: Path) -> int:
    """Of the file system that holds the path, or the nearest folder above it that exists."""
    stats = os.statvfs(next(folder for folder in path.absolute().parents if folder.is_dir()))
    return stats.f_bavail * stats.f_frsize


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
