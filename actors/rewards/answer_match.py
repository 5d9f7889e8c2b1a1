"""Whether a completion is the known answer."""

from cluster.errors import DataError
from cluster.types import Trajectory


def score(trajectory: Trajectory) -> float:
    """1 if the completion equals the task's reference, else 0. Case, spacing and a final full stop do not count."""
    task = trajectory.prompt.task
    if not task.reference:
        raise DataError(f"task {task.task_id!r} has no reference to match; add one, or take the answer_match scorer out")
    return float(_normalised(trajectory.completion.text) == _normalised(task.reference))


def _normalised(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".")
