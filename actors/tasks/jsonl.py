"""Tasks from a JSON-lines file, read strictly: every problem is named with its line, and a file with one is refused.

One object a line: {"prompt": text} or {"messages": [{"role": ..., "content": ...}, ...]}, optional "reference" and "id".
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from actors.config import JsonlTaskConfig
from actors.tasks.task_set import TaskSet
from cluster.errors import DataError
from cluster.types import Message, Role, Task

MAX_PROBLEMS = 20  # listed at once; reading stops there
HELD_OUT_ONE_IN = 10
FIELDS = ("prompt", "messages", "reference", "id")
ROLES: tuple[str, ...] = get_args(Role)
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class _LineProblem(Exception):
    """What is wrong with one line; collected, never shown on its own."""


def build_task_sets(config: JsonlTaskConfig) -> tuple[TaskSet, TaskSet]:
    """Return (train, held_out); about every tenth task is held out, by a hash of its messages."""
    path = Path(config.path).expanduser()
    tasks = load_tasks(path)
    keys = [_split_key(task) for task in tasks]
    if len(set(keys)) < 2:
        raise DataError(f"{path}: {len(tasks)} task(s) with one prompt cannot be split; give at least two different prompts")
    held_out_keys = {key for key in keys if key % HELD_OUT_ONE_IN == 0}
    if not held_out_keys or held_out_keys == set(keys):
        held_out_keys = {min(keys)}  # small files still get a task on either side
    return (
        TaskSet(name=f"{_stem(path)}/train", tasks=_where(tasks, [key not in held_out_keys for key in keys])),
        TaskSet(name=f"{_stem(path)}/held_out", tasks=_where(tasks, [key in held_out_keys for key in keys])),
    )


def load_tasks(path: Path) -> tuple[Task, ...]:
    """Read a .jsonl or .jsonl.gz file. Raises one `DataError` that lists up to 20 problems as `file:line: reason`."""
    tasks: list[Task] = []
    line_of_id: dict[str, int] = {}
    problems: list[str] = []
    for number, line in _numbered_lines(path):
        try:
            task = _parse_line(line, default_id=f"{_stem(path)}/{number}")
            if task.task_id in line_of_id:
                raise _LineProblem(f"id {task.task_id!r} was used in line {line_of_id[task.task_id]}; ids must differ")
        except _LineProblem as problem:
            problems.append(f"{path}:{number}: {problem}")
            if len(problems) == MAX_PROBLEMS:
                problems.append(f"{path}: stopped after {MAX_PROBLEMS} problems")
                break
            continue
        line_of_id[task.task_id] = number
        tasks.append(task)
    if problems:
        raise DataError("\n".join(problems))
    if not tasks:
        raise DataError(f'{path}: no tasks in it; write one object a line, for example {{"prompt": "Say hello."}}')
    return tuple(tasks)


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, counted from 1, without line ends and without the mark some editors put first."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; set task.path to a .jsonl or .jsonl.gz file")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                content = (line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line).strip()
                if content:
                    yield number, content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}; write the file again") from error


def _parse_line(line: bytes, *, default_id: str) -> Task:
    record = _json_object(line)
    unknown = [name for name in record if name not in FIELDS]
    if unknown:
        raise _LineProblem(f"unknown field {unknown[0]!r}; known fields are {', '.join(FIELDS)}")
    if ("prompt" in record) == ("messages" in record):
        raise _LineProblem("give exactly one of 'prompt' and 'messages'")
    return Task(
        task_id=_text(record, "id") if "id" in record else default_id,
        messages=_messages(record["messages"]) if "messages" in record else (_prompt_message(record),),
        reference=_text(record, "reference") if "reference" in record else "",
    )


def _json_object(line: bytes) -> dict[str, Any]:
    if b"\x00" in line:
        raise _LineProblem("holds a NUL byte; the file is damaged or not UTF-8 text")
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _LineProblem(f"byte {error.start + 1} is not UTF-8; save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise _LineProblem(f"not valid JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise _LineProblem("not valid JSON: nested too deeply") from error
    if not isinstance(record, dict):
        raise _LineProblem(f"is a {type(record).__name__}, expected an object")
    return record


def _prompt_message(record: dict[str, Any]) -> Message:
    return Message(role="user", content=_text(record, "prompt"))


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise _LineProblem("'messages' must be a list with at least one message")
    messages = []
    for message in value:
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise _LineProblem("each message must have exactly 'role' and 'content'")
        if message["role"] not in ROLES:
            raise _LineProblem(f"role {message['role']!r} is not one of {', '.join(ROLES)}")
        messages.append(Message(role=message["role"], content=_text(message, "content")))
    if messages[-1].role == "assistant":
        raise _LineProblem("the last message is the assistant's; nothing is left to answer")
    return tuple(messages)


def _text(record: dict[str, Any], name: str) -> str:
    value = record[name]
    if not isinstance(value, str):
        raise _LineProblem(f"{name!r} is a {type(value).__name__}, expected text")
    if not value.strip():
        raise _LineProblem(f"{name!r} is empty")
    if any(0xD800 <= ord(character) <= 0xDFFF for character in value):
        raise _LineProblem(f"{name!r} holds half of a surrogate pair; write the character itself")
    return value


def _where(tasks: Sequence[Task], keep: Sequence[bool]) -> tuple[Task, ...]:
    return tuple(task for task, kept in zip(tasks, keep, strict=True) if kept)


def _split_key(task: Task) -> int:
    text = json.dumps([[message.role, message.content] for message in task.messages])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".jsonl")
