"""Exceptions that nobody foresaw: the traceback goes to a file, and people get one line that names it."""

import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from cluster.errors import RaywardError, UnexpectedError
from cluster.host.cache import cache_root
from cluster.host.versions import machine, versions
from cluster.storage.atomic_file import write_atomically

MAX_SAID_CHARACTERS = 300
FRAME = '  File "'  # a message with one of these is a traceback of another process; it ends with what was raised


@contextmanager
def crashes_kept(folder: Path) -> Iterator[None]:
    """Inside, an exception that Rayward does not explain itself becomes `UnexpectedError`, its traceback a file in `folder`."""
    try:
        yield
    except RaywardError:
        raise
    except Exception as error:
        raise unexpected(error, folder) from error


def unexpected(error: Exception, folder: Path | None = None) -> UnexpectedError:
    """The error that names the file. None, or a folder that cannot be written: the file is under the cache root."""
    said = f"unexpected {type(error).__name__}: {_said(error)}"
    for place in ([] if folder is None else [folder]) + [cache_root() / "errors"]:
        try:
            return UnexpectedError(f"{said}; the traceback is in {_write(error, place)}")
        except OSError:  # a full disk; the next place may have space
            continue
    return UnexpectedError(f"{said}; its traceback could not be written:\n{_traceback(error)}")


def _write(error: Exception, folder: Path) -> Path:
    now = datetime.now(UTC)
    facts = {
        "time": now.isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        **versions(),
        **machine(),
    }
    path = folder / f"error-{now:%Y%m%d-%H%M%S-%f}.txt"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "\n".join([*(f"{name}: {fact}" for name, fact in facts.items()), "", _traceback(error)]))
    return path


def _traceback(error: Exception) -> str:
    return "".join(traceback.format_exception(error))


def _said(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["(it says nothing more)"]
    return lines[-1 if FRAME in str(error) else 0][:MAX_SAID_CHARACTERS]
