"""A file is the old one or the new one."""

import errno
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.errors import NotWrittenError
from cluster.storage.atomic_file import append_line, cut_torn_line, write_atomically


def test_content_replaces_content_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"\x00old")
    write_atomically(path, "new \u00e9")
    assert path.read_text(encoding="utf-8") == "new \u00e9"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def disk_full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(NotWrittenError, match=r"file could not be written: No space left .*; [\d.]+ MiB are free .*free some"):
        write_atomically(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


@contextmanager
def small_files() -> Iterator[None]:
    """A kernel that takes 20 bytes of any file, as a full disk takes a part of a line. Around nothing that pytest writes."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_line_that_does_not_fit_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    append_line(path, '{"step": 1}')
    with pytest.raises(NotWrittenError, match="lines could not be written: File too large"), small_files():
        append_line(path, '{"step": 2}')
    assert path.read_text() == '{"step": 1}\n'


def test_a_torn_last_line_is_cut_and_named(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"ste\0\0')
    assert cut_torn_line(path) == f"{path}:3: the last line is torn; its 7 bytes are cut"
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'
    assert cut_torn_line(path) == ""


@pytest.mark.parametrize(
    ("before", "after"), [(b"", b""), (b'{"a": 1}\n', b'{"a": 1}\n'), (b'{"a": 1}', b'{"a": 1}\n'), (b'{"a"', b"")]
)
def test_whole_lines_stay(tmp_path: Path, before: bytes, after: bytes) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(before)
    cut_torn_line(path)
    assert path.read_bytes() == after
