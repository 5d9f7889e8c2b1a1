"""`rayward keys`: made, listed and revoked, and never told twice."""

import json
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

import rayward
from cluster.errors import ConfigError
from serving.guard.keys.key_file import KeyFile


def name_of(file: KeyFile, key: str) -> str | None:
    found = file.find(key)
    return None if found is None else found.name


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default file, in a home of the test's."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path / "rayward" / "keys.json"


def run(*arguments: str) -> tuple[str, str]:
    done = CliRunner().invoke(rayward.app, ["keys", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout, done.stderr


def test_a_key_is_printed_alone_and_once(path: Path) -> None:
    key, said = run("add", "laptop")
    assert name_of(KeyFile(path), key.strip()) == "laptop"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    listed = run("list")[0]
    assert "laptop" in listed
    assert key.strip() not in listed + said + path.read_text()


def test_a_revoked_key_is_forgotten(path: Path) -> None:
    key = json.loads(run("add", "laptop", "--json")[0])["key"]["key"]
    run("revoke", "laptop")
    assert name_of(KeyFile(path), key) is None
    assert json.loads(run("list", "--json")[0]) == {"keys": []}


def test_another_file_can_be_named(tmp_path: Path, path: Path) -> None:
    key = run("add", "laptop", "--file", str(tmp_path / "other.json"))[0].strip()
    assert name_of(KeyFile(tmp_path / "other.json"), key) == "laptop"
    assert not path.exists()


def test_a_mistake_is_one_line(path: Path) -> None:
    with pytest.raises(ConfigError, match="must match"):
        run("add", "a b")
    run("add", "laptop")
    with pytest.raises(ConfigError, match="has a key 'laptop'; revoke it first"):
        run("add", "laptop")
