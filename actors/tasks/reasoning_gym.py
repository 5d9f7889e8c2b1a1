"""Tasks that the package `reasoning-gym` generates. Source: arXiv:2505.24760."""

import difflib
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from actors.config import ReasoningGymTaskConfig
from actors.tasks.task_set import TaskSet
from cluster.errors import ConfigError, DataError
from cluster.messages import Message
from cluster.types import Task

MAX_DRAWS_PER_TASK = 20  # small data sets repeat themselves; beyond this there are not enough different questions


def build_task_sets(config: ReasoningGymTaskConfig) -> tuple[TaskSet, TaskSet]:
    """Return (train, held_out): no question occurs twice, neither within a set nor in both."""
    wanted = config.num_train + config.num_held_out
    tasks: dict[str, Task] = {}  # by question
    for draw, entry in enumerate(_entries(config, num_draws=wanted * MAX_DRAWS_PER_TASK)):
        question, answer = entry["question"], entry["answer"]
        if not isinstance(answer, str) or not answer.strip():
            raise DataError(f"task.dataset={config.dataset!r} gives tasks without one known answer; choose another data set")
        if question not in tasks:
            tasks[question] = _task(f"{config.dataset}/{config.seed}-{draw}", question, answer.strip(), config.instruction)
            if len(tasks) == wanted:
                break
    if len(tasks) < wanted:
        raise ConfigError(
            f"task.num_train + task.num_held_out = {wanted}, but {config.dataset!r} gave only {len(tasks)} different questions "
            f"in {wanted * MAX_DRAWS_PER_TASK} draws; lower them, or widen task.options"
        )
    found: Sequence[Task] = tuple(tasks.values())
    return (
        TaskSet(name=f"{config.dataset}/train", tasks=tuple(found[: config.num_train])),
        TaskSet(name=f"{config.dataset}/held_out", tasks=tuple(found[config.num_train :])),
    )


def _task(task_id: str, question: str, answer: str, instruction: str) -> Task:
    content = f"{question}\n{instruction}" if instruction else question
    return Task(task_id=task_id, messages=(Message(role="user", content=content),), reference=answer)


def _entries(config: ReasoningGymTaskConfig, *, num_draws: int) -> Iterator[dict[str, Any]]:
    factory = _factory()
    if config.dataset not in factory.DATASETS:
        near = difflib.get_close_matches(config.dataset, factory.DATASETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it knows {', '.join(sorted(factory.DATASETS))}"
        raise ConfigError(f"task.dataset={config.dataset!r} is not a data set of reasoning-gym; {hint}")
    try:
        yield from factory.create_dataset(config.dataset, size=num_draws, seed=config.seed, **config.options)
    except (TypeError, ValueError, AssertionError) as error:  # how its data sets refuse an option
        raise ConfigError(f"task.options={config.options} do not suit {config.dataset!r}: {error}") from error


def _factory() -> ModuleType:
    try:
        from reasoning_gym import factory
    except ImportError as error:
        raise ConfigError(
            "task.kind=reasoning_gym needs the package reasoning-gym; install it with pip install -e '.[reasoning-gym]'"
        ) from error
    return factory
