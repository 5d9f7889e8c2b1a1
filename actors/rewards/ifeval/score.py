"""How many of a task's constraints a completion keeps."""

from actors.rewards.ifeval.constraint import constraints_in
from cluster.errors import DataError
from cluster.types import Trajectory


def score(trajectory: Trajectory) -> float:
    """Share of the constraints that are kept, 0..1."""
    kept = _kept(trajectory)
    return sum(kept) / len(kept)


def score_strict(trajectory: Trajectory) -> float:
    """1 if all constraints are kept, else 0: IFEval's strict accuracy at the level of prompts."""
    return float(all(_kept(trajectory)))


def _kept(trajectory: Trajectory) -> list[bool]:
    task = trajectory.prompt.task
    constraints = constraints_in(task.reference)
    if not constraints:
        raise DataError(f"task {task.task_id!r} has no constraints; the ifeval rewards are for task.kind=ifeval")
    return [constraint.is_kept_by(trajectory.completion.text) for constraint in constraints]
