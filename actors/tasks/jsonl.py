"""Tasks from a JSON-lines file of our own format.

One object a line: {"prompt": text} or {"messages": [{"role": ..., "content": ...}, ...]}, optional "reference" and "id".
"""

from pathlib import Path
from typing import Any, get_args

from actors.config import BadLines, JsonlTaskConfig
from actors.tasks.line_format import LineFormat, LineProblem, read_tasks, split_tasks, text_field
from actors.tasks.task_set import TaskSet
from cluster.messages import Message, Role
from cluster.types import Task

ROLES: tuple[str, ...] = get_args(Role)


def build_task_sets(config: JsonlTaskConfig) -> tuple[TaskSet, TaskSet]:
    """Return (train, held_out); about every tenth task is held out, by a hash of its messages."""
    path = Path(config.path).expanduser()
    return split_tasks(load_tasks(path, bad_lines=config.bad_lines), path)


def load_tasks(path: Path, *, bad_lines: BadLines = "error") -> tuple[Task, ...]:
    """Read a .jsonl or .jsonl.gz file. Raises one `DataError` that lists up to 20 problems as `file:line: reason`."""
    return read_tasks(path, LINE_FORMAT, bad_lines=bad_lines)


def _parse(record: dict[str, Any], default_id: str) -> Task:
    if ("prompt" in record) == ("messages" in record):
        raise LineProblem("give exactly one of 'prompt' and 'messages'")
    return Task(
        task_id=text_field(record, "id") if "id" in record else default_id,
        messages=_messages(record["messages"]) if "messages" in record else (_prompt_message(record),),
        reference=text_field(record, "reference") if "reference" in record else "",
    )


def _prompt_message(record: dict[str, Any]) -> Message:
    return Message(role="user", content=text_field(record, "prompt"))


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise LineProblem("'messages' must be a list with at least one message")
    messages = []
    for message in value:
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise LineProblem("each message must have exactly 'role' and 'content'")
        if message["role"] not in ROLES:
            raise LineProblem(f"role {message['role']!r} is not one of {', '.join(ROLES)}")
        messages.append(Message(role=message["role"], content=text_field(message, "content")))
    if messages[-1].role == "assistant":
        raise LineProblem("the last message is the assistant's; nothing is left to answer")
    return tuple(messages)


LINE_FORMAT = LineFormat(fields=("prompt", "messages", "reference", "id"), example='{"prompt": "Say hello."}', parse=_parse)
