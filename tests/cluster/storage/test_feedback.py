"""The feedback store: kept once, on the disk, and never read from a file that is not whole."""

import multiprocessing
import sqlite3
import stat
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from cluster.errors import DataError, FeedbackConflictError, FeedbackNotKeptError
from cluster.messages import Message
from cluster.storage import feedback
from cluster.storage.feedback import FeedbackStore, Preference


def a_preference(chosen: str = "yes") -> Preference:
    return Preference(
        model="tiny",
        policy_version=3,
        messages=(Message(role="system", content="Be brief."), Message(role="user", content="Well?")),
        chosen=chosen,
        rejected="no",
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "feedback.db"


def test_what_was_added_is_read_by_another_store_in_order_of_arrival(path: Path) -> None:
    store = FeedbackStore(path)
    added = [store.add(a_preference(chosen), idempotency_key=chosen) for chosen in ("z", "a", "m")]
    records = list(FeedbackStore(path).records())
    assert records == [each.record for each in added]
    assert [record.preference for record in records] == [a_preference(chosen) for chosen in ("z", "a", "m")]
    assert len({record.feedback_id for record in records}) == 3


def test_every_commit_waits_for_the_disk(path: Path) -> None:
    """Of the store's own connection: one that SQLite opens otherwise has other settings."""
    with FeedbackStore(path)._engine.connect() as connection:
        values = {name: connection.execute(text(f"PRAGMA {name}")).scalar() for name in ("synchronous", "journal_mode")}
        assert values == {"synchronous": 3, "journal_mode": "delete"}  # 3 is EXTRA: FULL, and the journal's folder as well
        assert connection.execute(text("PRAGMA busy_timeout")).scalar() == 30_000  # ms


def test_a_file_in_wal_mode_is_taken_out_of_it(path: Path) -> None:
    FeedbackStore(path).close()
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",)
    connection.close()
    with FeedbackStore(path)._engine.connect() as reopened:
        assert reopened.execute(text("PRAGMA journal_mode")).scalar() == "delete"


def test_nothing_stands_beside_the_file_between_commits(path: Path) -> None:
    store = FeedbackStore(path)
    store.add(a_preference(), idempotency_key="k")
    assert [each.name for each in path.parent.iterdir()] == [path.name]  # a copy of it is a copy of everything


def test_only_its_owner_reads_what_people_wrote(path: Path) -> None:
    FeedbackStore(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_replay_is_the_same_record(path: Path) -> None:
    store = FeedbackStore(path)
    first = store.add(a_preference(), idempotency_key="k")
    again = FeedbackStore(path).add(a_preference(), idempotency_key="k")
    assert (first.is_new, again.is_new) == (True, False)
    assert again.record == first.record
    assert list(store.records()) == [first.record]


def test_a_replay_is_a_commit_of_its_own(path: Path) -> None:
    """So that it waits for the disk, whatever became of the first."""
    store = FeedbackStore(path)
    for _ in range(3):
        store.add(a_preference(), idempotency_key="k")
    assert sqlite3.connect(path).execute("SELECT num_posts FROM feedback").fetchall() == [(3,)]


def test_one_key_for_two_preferences_is_refused(path: Path) -> None:
    store = FeedbackStore(path)
    first = store.add(a_preference("yes"), idempotency_key="k")
    with pytest.raises(FeedbackConflictError, match="key k was used for another preference"):
        store.add(a_preference("maybe"), idempotency_key="k")
    assert list(store.records()) == [first.record]


@pytest.mark.parametrize("key", ["", "-a", "a b", "a\n", "a" * 65, "a/b", "\u00e9", "a\0"])
def test_a_malformed_key_is_refused(path: Path, key: str) -> None:
    store = FeedbackStore(path)
    with pytest.raises(DataError, match="idempotency key"):
        store.add(a_preference(), idempotency_key=key)
    assert list(store.records()) == []


def test_a_preference_is_between_two_completions_of_a_prompt() -> None:
    with pytest.raises(DataError, match="same text"):
        a_preference(chosen="no")
    with pytest.raises(DataError, match="no messages"):
        Preference(model="tiny", policy_version=None, messages=(), chosen="a", rejected="b")


def test_more_than_a_page_is_read_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback, "PAGE_SIZE", 3)
    store = FeedbackStore(path)
    for number in range(7):
        store.add(a_preference(str(number)), idempotency_key=str(number))
    assert [record.preference.chosen for record in store.records()] == list("0123456")


def test_a_reader_that_stands_still_holds_no_writer_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback, "PAGE_SIZE", 1)
    store = FeedbackStore(path)
    for number in range(3):
        store.add(a_preference(str(number)), idempotency_key=str(number))
    reading = FeedbackStore(path).records()
    next(reading)
    store.add(a_preference("later"), idempotency_key="later")
    assert [record.preference.chosen for record in reading] == ["1", "2", "later"]


texts = st.text(max_size=40)
preferences = st.builds(
    Preference,
    model=texts,
    policy_version=st.none() | st.integers(0, 2**53),
    messages=st.lists(
        st.builds(Message, role=st.sampled_from(["system", "user", "assistant"]), content=texts), min_size=1, max_size=3
    ).map(tuple),
    chosen=texts.map(lambda chosen: chosen + "+"),
    rejected=texts.map(lambda rejected: rejected + "-"),
)


@settings(max_examples=30, deadline=None)
@given(posts=st.lists(st.tuples(st.sampled_from("abc"), preferences), max_size=6))
def test_it_keeps_the_first_preference_of_each_key_whatever_is_written_in_it(posts: list[tuple[str, Preference]]) -> None:
    expected: dict[str, Preference] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = FeedbackStore(Path(folder) / "feedback.db")
        for key, preference in posts:
            if expected.setdefault(key, preference) == preference:
                store.add(preference, idempotency_key=key)
                continue
            with pytest.raises(FeedbackConflictError):
                store.add(preference, idempotency_key=key)
        assert [(record.idempotency_key, record.preference) for record in store.records()] == list(expected.items())
        store.close()


NUM_KEYS = 60


def test_two_processes_may_write_at_once(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(2)
    writers = [context.Process(target=add_keys, args=(path, together)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    found = Counter(record.idempotency_key for record in FeedbackStore(path).records())
    assert found == {f"key-{number}": 1 for number in range(NUM_KEYS)}
    assert sqlite3.connect(path).execute("SELECT DISTINCT num_posts FROM feedback").fetchall() == [(2,)]


def add_keys(path: Path, together: "multiprocessing.synchronize.Barrier") -> None:
    together.wait()  # both also make the file
    store = FeedbackStore(path)
    for number in range(NUM_KEYS):
        store.add(a_preference(str(number)), idempotency_key=f"key-{number}")


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere/feedback\.db: No such file or directory; .*name another file"):
        FeedbackStore(tmp_path / "nowhere" / "feedback.db")
    with pytest.raises(DataError, match="unable to open"):
        FeedbackStore(tmp_path)


def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_bytes(b'{"chosen": "yes"}\n' * 100)
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"feedback\.db: file is not a database; restore it from a copy, or name another file"):
        FeedbackStore(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "statement",
    ["CREATE TABLE feedback (id INTEGER)", "PRAGMA application_id = 7", "PRAGMA journal_mode = WAL; CREATE TABLE t (id)"],
)
def test_the_database_of_another_program_is_refused_and_left_alone(path: Path, statement: str) -> None:
    other = sqlite3.connect(path)
    other.executescript(statement)
    other.close()
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"feedback\.db is another program's database; name another file"):
        FeedbackStore(path)
    assert path.read_bytes() == before


def test_a_file_of_another_version_is_refused(path: Path) -> None:
    FeedbackStore(path).close()
    execute(path, "PRAGMA user_version = 2")
    with pytest.raises(DataError, match="has version 2, this Rayward reads 1"):
        FeedbackStore(path)


PAGE_BYTES = 4096
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut in half": lambda whole: whole[: len(whole) // 2],
    "zeros in its head": lambda whole: bytes(100) + whole[100:],
    "zeros in a page": lambda whole: whole[: 2 * PAGE_BYTES] + bytes(PAGE_BYTES) + whole[3 * PAGE_BYTES :],
    "noise in a page": lambda whole: whole[: 6 * PAGE_BYTES] + b"\xa5" * PAGE_BYTES + whole[7 * PAGE_BYTES :],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_at_open(path: Path, damage: str) -> None:
    store = FeedbackStore(path)
    for number in range(50):
        store.add(a_preference(str(number) * 200), idempotency_key=str(number))
    store.close()
    whole = path.read_bytes()
    assert len(whole) > 8 * PAGE_BYTES
    path.write_bytes(DAMAGES[damage](whole))
    with pytest.raises(DataError, match=r"feedback file .*feedback\.db.*; restore it from a copy, or name another file"):
        FeedbackStore(path)


@pytest.mark.parametrize(
    "assignment",
    [
        "messages = 'not JSON'",
        "messages = '[]'",
        """messages = '[{"role": "judge", "content": "x"}]'""",
        "chosen = rejected",
        "chosen = x'ff'",
        "policy_version = 'three'",
        "created_s = 'today'",
    ],
)
def test_a_row_that_is_no_preference_is_named(path: Path, assignment: str) -> None:
    store = FeedbackStore(path)
    store.add(a_preference(), idempotency_key="a")
    store.add(a_preference(), idempotency_key="b")
    execute(path, f"UPDATE feedback SET {assignment} WHERE sequence = 2")
    records = store.records()
    assert next(records).idempotency_key == "a"
    with pytest.raises(DataError, match=r"feedback\.db: row 2 is no feedback"):
        next(records)


def test_what_cannot_be_written_is_not_acknowledged(path: Path) -> None:
    store = FeedbackStore(path)
    execute(path, "CREATE TRIGGER full BEFORE INSERT ON feedback BEGIN SELECT RAISE(FAIL, 'disk is full'); END")
    with pytest.raises(FeedbackNotKeptError, match="disk is full; the preference was not kept, send it again") as caught:
        store.add(a_preference("a secret"), idempotency_key="k")
    assert "a secret" not in repr(caught.value.__cause__)
    execute(path, "DROP TRIGGER full")
    assert store.add(a_preference("a secret"), idempotency_key="k").is_new


def execute(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()
