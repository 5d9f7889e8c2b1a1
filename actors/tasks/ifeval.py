"""Instructions whose keeping can be checked, in the format of IFEval's input_data.jsonl. Source: arXiv:2311.07911.

One object a line: {"key": number, "prompt": text, "instruction_id_list": [id, ...], "kwargs": [{...}, ...]}. The constraints
travel in the task's reference, from which the `ifeval` rewards read them.
"""

import logging
from collections import Counter
from pathlib import Path
from typing import Any

from actors.config import IFEvalTaskConfig
from actors.rewards.ifeval.constraint import CHECKERS, Constraint, constraints_in, reference_of
from actors.tasks.line_format import LineFormat, LineProblem, read_tasks, split_tasks, text_field
from actors.tasks.task_set import TaskSet
from cluster.errors import DataError
from cluster.messages import Message
from cluster.types import Task

logger = logging.getLogger("rayward")


def build_task_sets(config: IFEvalTaskConfig) -> tuple[TaskSet, TaskSet]:
    """Return (train, held_out); about every tenth prompt is held out, by its hash."""
    path = Path(config.path).expanduser()
    tasks = read_tasks(path, LINE_FORMAT, bad_lines=config.bad_lines)
    unsupported = {task.task_id: names for task in tasks if (names := _unsupported(task))}
    if unsupported:
        counts = Counter(name for names in unsupported.values() for name in names)
        listed = ", ".join(f"{name} ({count} tasks)" for name, count in sorted(counts.items()))
        if config.unsupported == "error":
            raise DataError(f"{path}: no checker knows {listed}; set task.unsupported=drop to leave these tasks out")
        logger.warning("%s: left out %d tasks with constraints that no checker knows: %s", path, len(unsupported), listed)
    return split_tasks([task for task in tasks if task.task_id not in unsupported], path)


def _parse(record: dict[str, Any], default_id: str) -> Task:
    prompt = text_field(record, "prompt")
    key = record.get("key")
    if not isinstance(key, int):
        raise LineProblem(f"'key' is {key!r}, expected a number")
    names, arguments = record.get("instruction_id_list"), record.get("kwargs")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise LineProblem("'instruction_id_list' must be a list with at least one id")
    if not isinstance(arguments, list) or len(arguments) != len(names) or not all(isinstance(each, dict) for each in arguments):
        raise LineProblem(f"'kwargs' must be a list of {len(names)} objects, one for each instruction id")
    constraints = [
        Constraint(instruction_id=name, arguments={key: value for key, value in given.items() if value is not None})
        for name, given in zip(names, arguments, strict=True)
    ]
    problems = [problem for each in constraints if each.instruction_id in CHECKERS and (problem := each.problem())]
    if problems:
        raise LineProblem("; ".join(problems))
    return Task(
        task_id=f"{default_id.rpartition('/')[0]}/{key}",
        messages=(Message(role="user", content=prompt),),
        reference=reference_of(constraints),
    )


def _unsupported(task: Task) -> list[str]:
    return [each.instruction_id for each in constraints_in(task.reference) if each.instruction_id not in CHECKERS]


LINE_FORMAT = LineFormat(
    fields=("key", "prompt", "instruction_id_list", "kwargs"),
    example='{"key": 1, "prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}',
    parse=_parse,
)
