"""Grade-school word problems in the format of GSM8K: {"question": text, "answer": "reasoning #### number"} a line.

Source: Cobbe et al. 2021, arXiv:2110.14168. The reference is the number alone, without commas.
"""

import re
from functools import partial
from pathlib import Path
from typing import Any

from actors.config import GSM8KTaskConfig
from actors.tasks.line_format import LineFormat, LineProblem, read_tasks, split_tasks, text_field
from actors.tasks.task_set import TaskSet
from cluster.messages import Message
from cluster.types import Task

MARK = "####"
NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")


def build_task_sets(config: GSM8KTaskConfig) -> tuple[TaskSet, TaskSet]:
    """Return (train, held_out); about every tenth question is held out, by its hash."""
    path = Path(config.path).expanduser()
    line_format = LineFormat(
        fields=("question", "answer"),
        example='{"question": "What is 3 + 4?", "answer": "3 and 4 are 7. #### 7"}',
        parse=partial(_parse, instruction=config.instruction),
    )
    return split_tasks(read_tasks(path, line_format, bad_lines=config.bad_lines), path)


def _parse(record: dict[str, Any], default_id: str, *, instruction: str) -> Task:
    question, answer = text_field(record, "question"), text_field(record, "answer")
    _, mark, result = answer.rpartition(MARK)
    reference = result.replace(",", "").strip()
    if not mark or NUMBER.fullmatch(reference) is None:
        raise LineProblem(f"'answer' must end with {MARK} and a number")
    message = Message(role="user", content=f"{question}\n{instruction}" if instruction else question)
    return Task(task_id=default_id, messages=(message,), reference=reference)
