"""The feedback store: which of two completions people preferred, in one SQLite file that outlives whoever writes it.

Serving adds, a preference learner reads. A preference that `add` has returned for is on the disk; the same idempotency key
never makes a second record. Several processes may use the file at once.

The journal is SQLite's rollback journal with synchronous=EXTRA: a commit returns once the data is on the disk, and so is the
removal of the journal that would undo it (sqlite.org/pragma.html#pragma_synchronous). Not WAL: before SQLite 3.51.3 a race
between writers in that mode can lose committed rows (sqlite.org/wal.html#walresetbug), and Python takes the SQLite that the
system has. Nor are there rows that only a -wal file holds: a copy of the one file is whole.
"""

import json
import os
import re
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter
from sqlalchemy import (
    URL,
    Column,
    Connection,
    Engine,
    Float,
    Integer,
    MetaData,
    RowMapping,
    Table,
    Text,
    create_engine,
    event,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.exc import DBAPIError

from cluster.errors import DataError, FeedbackConflictError, FeedbackNotKeptError
from cluster.messages import Message

IDEMPOTENCY_KEY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # a UUID fits
BUSY_TIMEOUT_S = 30.0  # how long one writer waits for the others; a commit takes milliseconds
PAGE_SIZE = 256  # records that are read at once; between pages writers get their turn
APPLICATION_ID = 0x52574642  # "RWFB", in the file's header
SCHEMA_VERSION = 1

FEEDBACK = Table(
    "feedback",
    MetaData(),
    Column("sequence", Integer, primary_key=True),  # order of arrival
    Column("feedback_id", Text, nullable=False, unique=True),
    Column("idempotency_key", Text, nullable=False, unique=True),
    Column("created_s", Float, nullable=False),
    Column("model", Text, nullable=False),
    Column("policy_version", Integer),
    Column("messages", Text, nullable=False),  # JSON
    Column("chosen", Text, nullable=False),
    Column("rejected", Text, nullable=False),
    Column("num_posts", Integer, nullable=False),
    sqlite_autoincrement=True,  # a number is not given again after its row was deleted
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """Which of two completions of a prompt a person preferred. Produced by the feedback endpoint, consumed by `FeedbackStore`.

    It carries the texts that it judges: what is served is not logged, so they could not be looked up.
    """

    model: str  # the name that clients ask for
    policy_version: int | None  # of the weights that wrote both completions; None where the client does not know it
    messages: tuple[Message, ...]  # the prompt
    chosen: str
    rejected: str

    def __post_init__(self) -> None:
        if not self.messages:
            raise DataError("a preference has no messages; give it the prompt, at least one message")
        if self.chosen == self.rejected:
            raise DataError("chosen and rejected are the same text; a preference is between two")


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackRecord:
    """A preference that was kept. Produced by `FeedbackStore`, consumed by the preference learner."""

    feedback_id: str
    idempotency_key: str  # what the client named it
    created_s: float  # Unix time
    preference: Preference


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """What `FeedbackStore.add` did. Consumed by the feedback endpoint."""

    record: FeedbackRecord
    is_new: bool  # False: an earlier post of this key was kept


class FeedbackStore:
    """Preferences in the SQLite file `path`, which is made where it does not exist. Threads may share a store.

    Raises `DataError` for a file that is damaged, belongs to something else, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._engine = _build_engine(path)
        self._adding = threading.Lock()  # SQLite's own waiting is a poll, and unfair: threads queue here
        try:
            _create_file(path)
            self._check()
        except (OSError, DBAPIError) as error:
            reason = error.orig if isinstance(error, DBAPIError) else error.strerror
            raise DataError(f"feedback file {path}: {reason}; {_WAY_OUT}") from error

    def add(self, preference: Preference, *, idempotency_key: str) -> Added:
        """Keep a preference; once this returns, it is on the disk. The same key with the same preference is the same record.

        Raises `DataError` for a malformed key, `FeedbackConflictError` where the key was used for another preference, and
        `FeedbackNotKeptError` where nothing could be written.
        """
        if not IDEMPOTENCY_KEY.fullmatch(idempotency_key):
            raise DataError(f"idempotency key {idempotency_key!r:.80} does not match {IDEMPOTENCY_KEY.pattern}; a UUID does")
        try:
            with self._adding, self._transaction() as connection:
                return self._add(connection, preference, idempotency_key)
        except DBAPIError as error:
            raise FeedbackNotKeptError(
                f"feedback file {self.path}: {error.orig}; the preference was not kept, send it again with the same key"
            ) from error

    def records(self) -> Iterator[FeedbackRecord]:
        """All records in order of arrival, with those that arrive meanwhile. Raises `DataError` for one that is broken."""
        last = 0
        while page := self._page(last):
            for row in page:
                yield self._record(row)
            last = page[-1]["sequence"]

    def close(self) -> None:
        """Close the file; a store that is used again opens it again."""
        self._engine.dispose()

    def _add(self, connection: Connection, preference: Preference, idempotency_key: str) -> Added:
        is_this_key = FEEDBACK.c.idempotency_key == idempotency_key
        row = connection.execute(select(FEEDBACK).where(is_this_key)).mappings().one_or_none()
        if row is None:
            record = FeedbackRecord(
                feedback_id=f"feedback-{uuid.uuid4().hex}",
                idempotency_key=idempotency_key,
                created_s=time.time(),
                preference=preference,
            )
            connection.execute(insert(FEEDBACK).values(**_columns(record), num_posts=1))
            return Added(record=record, is_new=True)
        record = self._record(row)
        if record.preference != preference:
            raise FeedbackConflictError(
                f"idempotency key {idempotency_key} was used for another preference; give a new judgement a new key"
            )
        # A writer killed within its commit may leave a row that is visible but not yet on the disk; this commit puts it there.
        connection.execute(update(FEEDBACK).where(is_this_key).values(num_posts=FEEDBACK.c.num_posts + 1))
        return Added(record=record, is_new=False)

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self._engine.begin() as connection:
            connection.exec_driver_sql(
                "BEGIN IMMEDIATE"
            )  # waits for other writers before anything is read, so it cannot deadlock
            yield connection

    def _check(self) -> None:
        """Make the table in a new file; of another one, see that it is ours and whole."""
        with self._transaction() as connection:
            if _pragma(connection, "application_id") == 0 and not inspect(connection).get_table_names():
                connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")
                FEEDBACK.create(connection)
            else:
                self._check_content(connection)
        with self._engine.connect() as connection:
            journal_mode = _pragma(connection, "journal_mode = DELETE")  # the default, unless someone has switched the file
        if journal_mode != "delete":
            raise DataError(f"feedback file {self.path}: its journal mode is {journal_mode}; end the programs that use it")

    def _check_content(self, connection: Connection) -> None:
        if _pragma(connection, "application_id") != APPLICATION_ID:
            raise DataError(f"feedback file {self.path} is another program's database; name another file")
        version = _pragma(connection, "user_version")
        if version != SCHEMA_VERSION:
            raise DataError(
                f"feedback file {self.path} has version {version}, this Rayward reads {SCHEMA_VERSION}; name another file"
            )
        found = " ".join(str(_pragma(connection, "quick_check(1)")).split())
        if found != "ok":
            raise DataError(f"feedback file {self.path} is damaged: {found}; {_WAY_OUT}")

    def _page(self, last: int) -> list[RowMapping]:
        query = select(FEEDBACK).where(FEEDBACK.c.sequence > last).order_by(FEEDBACK.c.sequence).limit(PAGE_SIZE)
        try:
            with self._engine.connect() as connection:
                return list(connection.execute(query).mappings())
        except DBAPIError as error:
            raise DataError(f"feedback file {self.path}: {error.orig}; {_WAY_OUT}") from error

    def _record(self, row: RowMapping) -> FeedbackRecord:
        try:
            values = {name: row[name] for name in ("feedback_id", "idempotency_key", "created_s")}
            preference = {name: row[name] for name in ("model", "policy_version", "chosen", "rejected")}
            preference["messages"] = json.loads(row["messages"])
            return _RECORD.validate_python({**values, "preference": preference})
        except (ValueError, TypeError, DataError) as error:
            raise DataError(f"feedback file {self.path}: row {row['sequence']} is no feedback: {error}; {_WAY_OUT}") from error


_RECORD = TypeAdapter(FeedbackRecord)
_WAY_OUT = "restore it from a copy, or name another file"


def _columns(record: FeedbackRecord) -> dict[str, Any]:
    values = asdict(record)
    preference = values.pop("preference")
    return {**values, **preference, "messages": json.dumps(preference["messages"])}


def _build_engine(path: Path) -> Engine:
    url = URL.create("sqlite", database=str(path))
    # Parameters are people's texts; SQLAlchemy would put them into its errors.
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S}, hide_parameters=True)
    event.listen(engine, "connect", _sync_every_commit)
    return engine


def _sync_every_commit(connection: Any, _: object) -> None:
    connection.execute("PRAGMA synchronous = EXTRA")  # a setting of the connection, not of the file


def _create_file(path: Path) -> None:
    """Readable for its owner alone: it holds what people wrote. SQLite gives its journal the same mode."""
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _pragma(connection: Connection, name: str) -> object:
    return connection.exec_driver_sql(f"PRAGMA {name}").scalar()
