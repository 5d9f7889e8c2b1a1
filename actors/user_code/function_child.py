"""A user's reward function at work, in the process of a `ChildProcess`.

The function returns a number, or {"score": number, "steps": [(token index, number), ...]}: what of the score belongs to single
steps, each at its last token of the completion. Each trajectory gets one outcome: {"score": number, "steps": [[index, number],
...]} or {"error": what went wrong}.
"""

import asyncio
import inspect
import math
import numbers
import operator
import traceback
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from actors.user_code.function import load_user_function
from cluster.types import Trajectory

Outcome = dict[str, Any]


def build(*, path: str, batched: bool, timeout_s: float, max_concurrency: int) -> "UserFunction":
    """The handler for this process; imports the user's module."""
    return UserFunction(load_user_function(path), batched=batched, timeout_s=timeout_s, max_concurrency=max_concurrency)


class UserFunction:
    """Calls the function as its settings and its kind ask for."""

    def __init__(self, function: Callable[..., Any], *, batched: bool, timeout_s: float, max_concurrency: int) -> None:
        self._function = function
        self._batched = batched
        self._timeout_s = timeout_s
        self._max_concurrency = max_concurrency
        # One event loop for all calls: a client that the user's module keeps open belongs to the loop it was first used in.
        self._runner = asyncio.Runner()

    def __call__(self, trajectories: Sequence[Trajectory]) -> Iterator[Outcome]:
        """One outcome a trajectory, in order, each as soon as it is known."""
        if self._batched:
            yield from self._judge_together(trajectories)
        elif _is_async(self._function):
            yield from self._judge_concurrently(trajectories)
        else:
            for trajectory in trajectories:
                yield self._judge(trajectory)

    def _judge(self, trajectory: Trajectory) -> Outcome:
        try:
            return _outcome(self._result(trajectory))
        except Exception as error:  # noqa: BLE001 - a user's function may raise anything; the outcome says so
            return _failure(error)

    def _judge_concurrently(self, trajectories: Sequence[Trajectory]) -> Iterator[Outcome]:
        free_places = asyncio.Semaphore(self._max_concurrency)

        async def judge(trajectory: Trajectory) -> Outcome:
            async with free_places:
                try:
                    return _outcome(await asyncio.wait_for(self._function(trajectory), self._timeout_s))
                except TimeoutError as error:
                    return {"error": str(error) or f"no result within {self._timeout_s:g} s"}
                except Exception as error:  # noqa: BLE001 - as above
                    return _failure(error)

        loop = self._runner.get_loop()
        tasks = [loop.create_task(judge(trajectory)) for trajectory in trajectories]
        for task in tasks:
            yield self._runner.run(_awaited(task))

    def _judge_together(self, trajectories: Sequence[Trajectory]) -> Iterator[Outcome]:
        scores = list(self._result(list(trajectories)))
        if len(scores) != len(trajectories):
            raise ValueError(f"returned {len(scores)} scores for {len(trajectories)} trajectories")
        yield from map(_outcome, scores)

    def _result(self, argument: Any) -> Any:
        result = self._function(argument)
        return self._runner.run(_awaited(result)) if inspect.isawaitable(result) else result


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


def _outcome(result: Any) -> Outcome:
    score, steps = (result.get("score"), result.get("steps", ())) if isinstance(result, dict) else (result, ())
    try:
        return {"score": _number(score), "steps": [[operator.index(index), _number(value)] for index, value in steps]}
    except (TypeError, ValueError) as error:
        return {"error": f"returned {result!r:.100}: {error}"}


def _number(value: Any) -> float:
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{value!r:.100} is not a number")
    if not math.isfinite(value):
        raise ValueError(f"{value} is not finite")
    return float(value)


def _failure(error: Exception) -> Outcome:
    traceback.print_exception(error)
    return {"error": f"raised {type(error).__name__}: {error}"}
