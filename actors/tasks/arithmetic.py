"""Adding, subtracting and multiplying a few integers: "3 + 4 =", whose reference is "7"."""

import math
import random
from collections.abc import Iterable

from actors.config import ArithmeticTaskConfig
from actors.tasks.task_set import TaskSet
from cluster.messages import Message
from cluster.types import Task

CHAT_INSTRUCTION = "Complete the last line with the result. Answer with the number only."


def build_task_sets(config: ArithmeticTaskConfig) -> tuple[TaskSet, TaskSet]:
    """Return (train, held_out). No problem is in both, and the examples are in neither."""
    num_drawn = config.num_examples + config.num_train + config.num_held_out
    drawn = random.Random(config.seed).sample(range(config.num_problems), num_drawn)
    problems = [problem(index, config) for index in drawn]
    examples = "".join(f"{example} = {value(example)}\n" for example in problems[: config.num_examples])
    instruction = f"{CHAT_INSTRUCTION}\n" if config.prompt_format == "chat" else ""
    first_held_out = config.num_examples + config.num_train
    return (
        TaskSet(
            name="arithmetic/train", tasks=_tasks(problems[config.num_examples : first_held_out], above=instruction + examples)
        ),
        TaskSet(name="arithmetic/held_out", tasks=_tasks(problems[first_held_out:], above=instruction + examples)),
    )


def problem(index: int, config: ArithmeticTaskConfig) -> str:
    """Problem number `index` of `config.num_problems`, as "3 + 4": the digits of the index choose operands and operations."""
    num_operands, operations = config.max_operand - config.min_operand + 1, config.operations
    index, operand = divmod(index, num_operands)
    parts = [str(config.min_operand + operand)]
    for _ in range(config.num_terms - 1):
        index, operation = divmod(index, len(operations))
        index, operand = divmod(index, num_operands)
        parts += [operations[operation], str(config.min_operand + operand)]
    return " ".join(parts)


def value(expression: str) -> int:
    """The value of "2 - 3 * 4": products before sums, from left to right."""
    summands = expression.replace(" - ", " + -").split(" + ")
    return sum(math.prod(int(factor) for factor in summand.split(" * ")) for summand in summands)


def _tasks(problems: Iterable[str], *, above: str) -> tuple[Task, ...]:
    return tuple(
        Task(
            task_id=f"arithmetic/{expression.replace(' ', '')}",
            messages=(Message(role="user", content=f"{above}{expression} ="),),
            reference=str(value(expression)),
        )
        for expression in problems
    )
