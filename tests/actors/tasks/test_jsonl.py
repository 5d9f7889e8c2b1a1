"""Tasks from files: what is read, and how each kind of damage is named."""

import gzip
import json
from pathlib import Path

import pytest

from actors.config import JsonlTaskConfig
from actors.tasks import build_task_sets
from actors.tasks.jsonl import load_tasks
from cluster.errors import DataError

GOOD = b'{"prompt": "fine"}\n'


def write(folder: Path, content: bytes, name: str = "sums.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def test_prompt_and_messages_and_default_ids(tmp_path: Path) -> None:
    lines = [
        {"prompt": "2 + 2?", "reference": "4"},
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "3 + 3?"}], "id": "three"},
    ]
    first, second = load_tasks(write(tmp_path, "\n".join(json.dumps(line) for line in lines).encode()))
    assert (first.task_id, first.messages[0].role, first.messages[0].content, first.reference) == (
        "sums/1",
        "user",
        "2 + 2?",
        "4",
    )
    assert (second.task_id, [m.role for m in second.messages], second.reference) == ("three", ["system", "user"], "")


def test_what_editors_add_does_not_matter(tmp_path: Path) -> None:
    tasks = load_tasks(write(tmp_path, b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n{"prompt": "b"}\r\n'))
    assert [(task.task_id, task.messages[0].content) for task in tasks] == [("sums/1", "a"), ("sums/3", "b")]


def test_gzip_is_read(tmp_path: Path) -> None:
    (task,) = load_tasks(write(tmp_path, gzip.compress(GOOD), "sums.jsonl.gz"))
    assert task.task_id == "sums/1"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": "a"', "not valid JSON: Expecting ',' delimiter at column 15"),
        (b"[" * 100_000, "not valid JSON: nested too deeply"),
        (b'{"prompt": "' + b"x" * 10_000_000 + b'"}', "is longer than 1048576 bytes; is there a line end missing?"),
        (b'["a"]', "is a list, expected an object"),
        (b'{"reference": "a"}', "give exactly one of 'prompt' and 'messages'"),
        (b'{"prompt": "a", "messages": []}', "give exactly one of 'prompt' and 'messages'"),
        (b'{"prompt": 5}', "'prompt' is a int, expected text"),
        (b'{"prompt": " "}', "'prompt' is empty"),
        (b'{"prompt": "a", "refrence": "b"}', "unknown field 'refrence'; known fields are prompt, messages, reference, id"),
        (b'{"prompt": "a\x00"}', "holds a NUL byte; the file is damaged or not UTF-8 text"),
        (b'{"prompt": "caf\xe9"}', "byte 16 is not UTF-8; save the file as UTF-8"),
        (b'{"prompt": "\\ud83c"}', "'prompt' holds half of a surrogate pair; write the character itself"),
        (b'{"messages": []}', "'messages' must be a list with at least one message"),
        (b'{"messages": [{"role": "user"}]}', "each message must have exactly 'role' and 'content'"),
        (b'{"messages": [{"role": "bot", "content": "a"}]}', "role 'bot' is not one of system, user, assistant"),
        (
            b'{"messages": [{"role": "assistant", "content": "a"}]}',
            "the last message is the assistant's; nothing is left to answer",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, reason: str) -> None:
    path = write(tmp_path, GOOD + line + b"\n" + GOOD)
    with pytest.raises(DataError) as caught:
        load_tasks(path)
    assert str(caught.value).splitlines() == [
        f"{path}:2: {reason}",
        f"{path}: found 1 bad lines; correct them, or set task.bad_lines=skip to leave them out",
    ]


def test_all_problems_are_told_at_once_up_to_twenty(tmp_path: Path) -> None:
    path = write(tmp_path, b"{\n" * 2 + GOOD + b'{"prompt": 1}\n')
    with pytest.raises(DataError) as caught:
        load_tasks(path)
    assert [line.split(": ")[0] for line in str(caught.value).splitlines()] == [f"{path}:1", f"{path}:2", f"{path}:4", f"{path}"]
    with pytest.raises(DataError) as caught:
        load_tasks(write(tmp_path, b"{\n" * 500))
    assert str(caught.value).splitlines()[20:] == [
        f"{path}: found 20 bad lines, and stopped there; correct them, or set task.bad_lines=skip to leave them out"
    ]


def test_bad_lines_are_skipped_and_told_where_that_is_wanted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, b"{\n" * 30 + GOOD + b'{"prompt": 1}\n' + GOOD)
    tasks = load_tasks(path, bad_lines="skip")
    assert [task.task_id for task in tasks] == ["sums/31", "sums/33"]
    (message,) = caplog.messages
    assert message.startswith(f"{path}: left out 31 bad lines, kept 2; the first are\n{path}:1: not valid JSON")
    assert len(message.splitlines()) == 21
    with pytest.raises(DataError, match="no tasks in it"):
        load_tasks(write(tmp_path, b"{\n" * 30), bad_lines="skip")


def test_duplicate_ids_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, b'{"prompt": "a", "id": "x"}\n{"prompt": "b", "id": "x"}\n')
    with pytest.raises(DataError, match=":2: id 'x' was used in line 1"):
        load_tasks(path)


@pytest.mark.parametrize("content", [b"", b"\n \r\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match="no tasks in it; write one object a line"):
        load_tasks(write(tmp_path, content))


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file; set task.path"):
        load_tasks(tmp_path / "missing.jsonl")
    for content in (b"plain text", gzip.compress(GOOD * 1000)[:-20]):
        with pytest.raises(DataError, match="cannot be read.*write the file again"):
            load_tasks(write(tmp_path, content, "bad.jsonl.gz"))


def test_a_tenth_is_held_out_and_equal_prompts_stay_together(tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": f"question {index % 500}"}) for index in range(1000)]
    train, held_out = build_task_sets(JsonlTaskConfig(path=str(write(tmp_path, "\n".join(lines).encode()))))
    assert len(train) + len(held_out) == 1000
    assert 60 < len(held_out) < 140
    assert {task.messages for task in train}.isdisjoint({task.messages for task in held_out})
    assert (train.name, held_out.name) == ("sums/train", "sums/held_out")


@pytest.mark.parametrize("num_tasks", [2, 3, 5])
def test_a_small_file_has_a_task_on_either_side(tmp_path: Path, num_tasks: int) -> None:
    lines = b"".join(b'{"prompt": "question %d"}\n' % index for index in range(num_tasks))
    train, held_out = build_task_sets(JsonlTaskConfig(path=str(write(tmp_path, lines))))
    assert len(train) >= 1
    assert len(held_out) >= 1
    assert len(train) + len(held_out) == num_tasks


def test_one_prompt_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="give at least two different prompts"):
        build_task_sets(JsonlTaskConfig(path=str(write(tmp_path, GOOD * 3))))
