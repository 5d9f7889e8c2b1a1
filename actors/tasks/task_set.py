"""The problems of a run, in a fixed order."""

from collections.abc import Iterator
from dataclasses import dataclass

from cluster.errors import DataError
from cluster.types import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSet:
    """A named sequence of tasks. Produced by `build_task_sets`, consumed by `render_prompts`."""

    name: str
    tasks: tuple[Task, ...]

    def __post_init__(self) -> None:
        if not self.tasks:
            raise DataError(f"task set {self.name!r} is empty; give it more data or loosen its filter")

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: int) -> Task:
        return self.tasks[index]

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)
