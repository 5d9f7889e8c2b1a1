"""What nobody foresaw: a file with the traceback, and one line that names it."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from cluster.errors import DataError, UnexpectedError
from cluster.host.crash_report import crashes_kept


def fail(error: Exception) -> None:
    raise error


def test_the_traceback_is_in_the_folder_and_the_message_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UnexpectedError) as caught, crashes_kept(tmp_path / "logs"):
        fail(ValueError("too odd\nand more of it"))
    (file,) = (tmp_path / "logs").iterdir()
    assert str(caught.value) == f"unexpected ValueError: too odd; the traceback is in {file}"
    text = file.read_text()
    assert "Traceback (most recent call last)" in text
    assert re.search(r"in fail\n", text)
    assert "and more of it" in text
    assert f"command: {shlex.join(sys.argv)}\n" in text
    assert re.search(r"^python: 3", text, re.MULTILINE)


def test_an_error_that_explains_itself_passes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="^no texts$"), crashes_kept(tmp_path / "logs"):
        fail(DataError("no texts"))
    assert not (tmp_path / "logs").exists()


def test_where_the_folder_cannot_be_made_the_cache_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYWARD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "file").touch()
    with pytest.raises(UnexpectedError, match=re.escape(str(tmp_path / "cache" / "errors"))), crashes_kept(tmp_path / "file"):
        fail(ValueError("too odd"))


def test_where_nothing_can_be_written_the_message_holds_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAYWARD_CACHE", str(tmp_path / "file"))
    with pytest.raises(UnexpectedError, match="in fail"), crashes_kept(tmp_path / "file"):
        fail(ValueError("too odd"))


def test_of_a_traceback_from_another_process_the_line_has_what_was_raised(tmp_path: Path) -> None:
    remote = 'ray::score() (pid=7)\n  File "scorer.py", line 3, in score\n    raise KeyError\nKeyError: text'
    with pytest.raises(UnexpectedError, match="unexpected RuntimeError: KeyError: text; "), crashes_kept(tmp_path):
        fail(RuntimeError(remote))
