"""The file of keys: what is kept, who may open it, and what is refused."""

import hashlib
import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.errors import ConfigError, DataError
from serving.guard.keys.key_file import KEY_PREFIX, KeyFile, add_key, read_keys, revoke_key


def name_of(file: KeyFile, key: str) -> str | None:
    found = file.find(key)
    return None if found is None else found.name


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "settings" / "keys.json"


def test_a_key_is_long_and_random_and_only_its_hash_is_kept(path: Path) -> None:
    keys = [add_key(path, name) for name in ("laptop", "bob")]
    assert len(set(keys)) == 2
    assert all(key.startswith(KEY_PREFIX) and len(key) == 46 for key in keys)  # 3 + 43 letters of 6 bits: 256 bits
    assert not [key for key in keys if key in path.read_text()]
    assert [key.sha256 for key in read_keys(path)] == [hashlib.sha256(key.encode()).hexdigest() for key in keys]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_key_is_known_by_its_name(path: Path) -> None:
    keys = {name: add_key(path, name) for name in ("laptop", "bob")}
    file = KeyFile(path)
    assert {name: name_of(file, key) for name, key in keys.items()} == {"laptop": "laptop", "bob": "bob"}
    for wrong in ("", "rk_", "laptop", keys["bob"][:-1], keys["bob"] + "=", keys["bob"].upper(), "\udcff", "\x00"):
        assert name_of(file, wrong) is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o700])
def test_a_file_that_others_can_open_is_refused(path: Path, mode: int) -> None:
    key = add_key(path, "laptop")
    path.chmod(mode)
    with pytest.raises(DataError, match=f"mode {mode:04o}.*chmod 600"):
        read_keys(path)
    with pytest.raises(DataError, match="chmod 600"):
        KeyFile(path).find(key)
    with pytest.raises(DataError, match="chmod 600"):
        add_key(path, "bob")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"keys": 1}', '{"keys": [{}]}', '{"keys": [{"name": "a", "sha256": "x", "created_s": 1}]}']
)
def test_a_damaged_file_is_refused(path: Path, content: str) -> None:
    add_key(path, "laptop")
    path.write_text(content)
    with pytest.raises(DataError, match="is damaged"):
        read_keys(path)


def test_a_file_that_is_not_there_is_named(path: Path) -> None:
    with pytest.raises(DataError, match="keys.json cannot be read: No such file.*rayward keys add NAME"):
        read_keys(path)


@pytest.mark.parametrize("name", ["", "a b", "../x", "x" * 65, "a\nb", "-x"])
def test_a_name_is_plain(path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="must match"):
        add_key(path, name)
    assert not path.exists()


def test_a_name_is_used_once_until_it_is_revoked(path: Path) -> None:
    old = add_key(path, "laptop")
    with pytest.raises(ConfigError, match="has a key 'laptop'"):
        add_key(path, "laptop")
    revoke_key(path, "laptop")
    new = add_key(path, "laptop")
    file = KeyFile(path)
    assert (name_of(file, old), name_of(file, new)) == (None, "laptop")
    with pytest.raises(ConfigError, match="no key 'bob'; known are laptop"):
        revoke_key(path, "bob")


def test_keys_that_are_made_at_the_same_time_are_all_kept(path: Path) -> None:
    names = [f"client-{number}" for number in range(20)]
    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(lambda name: add_key(path, name), names))
    assert sorted(key.name for key in read_keys(path)) == sorted(names)
    assert sorted(entry.name for entry in path.parent.iterdir()) == [".keys.json.lock", "keys.json"]
    assert set(json.loads(path.read_text())) == {"keys"}


def test_a_key_is_for_what_it_was_made_for(path: Path) -> None:
    add_key(path, "app", ["feedback"])
    add_key(path, "all")
    assert [key.scopes for key in read_keys(path)] == [("feedback",), ("feedback", "inference")]
    for scopes in ([], ["admin"]):
        with pytest.raises(ConfigError, match="must be among feedback, inference"):
            add_key(path, "other", scopes)
