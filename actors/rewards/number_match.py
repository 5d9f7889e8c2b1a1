"""Whether a number in a completion is the known answer: plain decimal numbers, compared exactly.

A minus counts as a sign where no digit, letter or closing bracket stands before it; commas may group thousands.
"""

import re
from decimal import Decimal

from cluster.errors import DataError
from cluster.types import Trajectory

NUMBER = re.compile(r"(?:(?<![0-9A-Za-z)\]])-)?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?")


def score_final(trajectory: Trajectory) -> float:
    """1 if the last number of the completion equals the task's reference, else 0. For answers that end with the result."""
    return _score(trajectory, position=-1)


def score_first(trajectory: Trajectory) -> float:
    """1 if the first number equals the reference, else 0. For a prompt that the result continues, such as "3 + 4 =": a base
    model goes on with the next problem."""
    return _score(trajectory, position=0)


def _score(trajectory: Trajectory, *, position: int) -> float:
    task = trajectory.prompt.task
    if NUMBER.fullmatch(task.reference) is None:
        raise DataError(
            f"task {task.task_id!r} has the reference {task.reference!r}, which is not a number; "
            "use math_verify or answer_match for such answers"
        )
    numbers = NUMBER.findall(trajectory.completion.text)
    return float(bool(numbers) and _value(numbers[position]) == _value(task.reference))


def _value(number: str) -> Decimal:
    return Decimal(number.replace(",", ""))
