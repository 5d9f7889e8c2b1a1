"""Files of one JSON object a line, read strictly: every problem is named with its line; a file with one is refused, unless bad
lines are to be skipped.
"""

import gzip
import hashlib
import json
import logging
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from actors.config import BadLines
from actors.tasks.task_set import TaskSet
from cluster.errors import DataError
from cluster.types import Task

logger = logging.getLogger("rayward")

MAX_PROBLEMS = 20  # listed at once
MAX_LINE_BYTES = 1 << 20
HELD_OUT_ONE_IN = 10
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class LineProblem(Exception):
    """What is wrong with one line; collected, never shown on its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LineFormat:
    """What a line of one kind of file holds."""

    fields: tuple[str, ...]  # every name that a line may have
    example: str
    parse: Callable[[dict[str, Any], str], Task]  # (record, default id) -> task; raises `LineProblem`


def read_tasks(path: Path, line_format: LineFormat, *, bad_lines: BadLines = "error") -> tuple[Task, ...]:
    """Read a .jsonl or .jsonl.gz file.

    Up to 20 problems, each as `file:line: reason`, are one `DataError`, or one warning where bad lines are skipped.
    """
    tasks: list[Task] = []
    line_of_id: dict[str, int] = {}
    problems: list[str] = []
    for number, line in _numbered_lines(path):
        try:
            task = line_format.parse(_record(line, line_format.fields), f"{stem(path)}/{number}")
            if task.task_id in line_of_id:
                raise LineProblem(f"id {task.task_id!r} was used in line {line_of_id[task.task_id]}; ids must differ")
        except LineProblem as problem:
            problems.append(f"{path}:{number}: {problem}")
            if len(problems) == MAX_PROBLEMS and bad_lines == "error":
                break
            continue
        line_of_id[task.task_id] = number
        tasks.append(task)
    if problems and bad_lines == "error":
        stopped = ", and stopped there" if len(problems) == MAX_PROBLEMS else ""
        found = f"{path}: found {len(problems)} bad lines{stopped}; correct them, or set task.bad_lines=skip to leave them out"
        raise DataError("\n".join([*problems, found]))
    if problems:
        listed = "\n".join(problems[:MAX_PROBLEMS])
        logger.warning("%s: left out %d bad lines, kept %d; the first are\n%s", path, len(problems), len(tasks), listed)
    if not tasks:
        raise DataError(f"{path}: no tasks in it; write one object a line, for example {line_format.example}")
    return tuple(tasks)


def split_tasks(tasks: Sequence[Task], path: Path) -> tuple[TaskSet, TaskSet]:
    """Return (train, held_out); about every tenth task is held out, by a hash of its messages."""
    keys = [_split_key(task) for task in tasks]
    if len(set(keys)) < 2:
        raise DataError(f"{path}: {len(tasks)} task(s) with one prompt cannot be split; give at least two different prompts")
    held_out_keys = {key for key in keys if key % HELD_OUT_ONE_IN == 0}
    if not held_out_keys or held_out_keys == set(keys):
        held_out_keys = {min(keys)}  # small files still get a task on either side
    return (
        TaskSet(name=f"{stem(path)}/train", tasks=_where(tasks, [key not in held_out_keys for key in keys])),
        TaskSet(name=f"{stem(path)}/held_out", tasks=_where(tasks, [key in held_out_keys for key in keys])),
    )


def text_field(record: dict[str, Any], name: str) -> str:
    """A field that must be there, be text, and say something."""
    if name not in record:
        raise LineProblem(f"{name!r} is missing")
    value = record[name]
    if not isinstance(value, str):
        raise LineProblem(f"{name!r} is a {type(value).__name__}, expected text")
    if not value.strip():
        raise LineProblem(f"{name!r} is empty")
    if any(0xD800 <= ord(character) <= 0xDFFF for character in value):
        raise LineProblem(f"{name!r} holds half of a surrogate pair; write the character itself")
    return value


def stem(path: Path) -> str:
    """The file's name without its endings: the first part of the ids and names of its tasks."""
    return path.name.removesuffix(".gz").removesuffix(".jsonl")


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, counted from 1, without line ends and without the mark some editors put first."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; set task.path to a .jsonl or .jsonl.gz file")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            for number, line in enumerate(_bounded_lines(cast(BinaryIO, stream)), start=1):
                content = (line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line).strip()
                if content:
                    yield number, content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}; write the file again") from error


def _bounded_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Each line, of one that is longer than any task the first `MAX_LINE_BYTES + 1` bytes."""
    while line := stream.readline(MAX_LINE_BYTES + 1):
        yield line
        while line and not line.endswith(b"\n"):
            line = stream.readline(MAX_LINE_BYTES)


def _record(line: bytes, fields: Sequence[str]) -> dict[str, Any]:
    record = _json_object(line)
    unknown = [name for name in record if name not in fields]
    if unknown:
        raise LineProblem(f"unknown field {unknown[0]!r}; known fields are {', '.join(fields)}")
    return record


def _json_object(line: bytes) -> dict[str, Any]:
    if len(line) > MAX_LINE_BYTES:
        raise LineProblem(f"is longer than {MAX_LINE_BYTES} bytes; is there a line end missing?")
    if b"\x00" in line:
        raise LineProblem("holds a NUL byte; the file is damaged or not UTF-8 text")
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise LineProblem(f"byte {error.start + 1} is not UTF-8; save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise LineProblem(f"not valid JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise LineProblem("not valid JSON: nested too deeply") from error
    if not isinstance(record, dict):
        raise LineProblem(f"is a {type(record).__name__}, expected an object")
    return record


def _where(tasks: Sequence[Task], keep: Sequence[bool]) -> tuple[Task, ...]:
    return tuple(task for task, kept in zip(tasks, keep, strict=True) if kept)


def _split_key(task: Task) -> int:
    text = json.dumps([[message.role, message.content] for message in task.messages])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
