"""A scorer that is a reward function of the user, run in a process that is killed when the function hangs."""

from collections.abc import Sequence
from typing import Any

from actors.child_process import ChildError, ChildProcess, ChildTimeoutError
from actors.config import PythonScorerConfig
from cluster.errors import ConfigError, RaywardError
from cluster.types import Score, StepScore, Trajectory

GRACE_S = 0.5  # an async function's own time-out comes first: it ends one call, not the process
MAX_PROBLEMS = 5  # shown at once


class PythonScorer:
    """Implements `Scorer` with a user's function. A score that cannot be had is an error, never a zero."""

    def __init__(self, config: PythonScorerConfig) -> None:
        self._path = config.path
        self._batched = config.batched
        self._timeout_s = config.timeout_s
        self._child = ChildProcess(
            "actors.user_function_child:build",
            {
                "path": config.path,
                "batched": config.batched,
                "timeout_s": config.timeout_s,
                "max_concurrency": config.max_concurrency,
            },
        )

    def score(self, trajectories: Sequence[Trajectory]) -> list[Score]:
        """One score a trajectory, in order. Raises with the function, the task and what happened."""
        if not trajectories:
            self._start()
            return []
        outcomes, stopped = self._outcomes(trajectories)
        problems = [
            _where(trajectory, outcome["error"])
            for trajectory, outcome in zip(trajectories, outcomes, strict=False)
            if "error" in outcome
        ]
        if stopped:
            problems.append(self._where_it_stopped(trajectories, len(outcomes), stopped))
        if problems:
            more = [f"and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else []
            raise RaywardError("\n".join(f"reward function {self._path}: {line}" for line in problems[:MAX_PROBLEMS] + more))
        return [_score(outcome) for outcome in outcomes]

    def close(self) -> None:
        """End the process."""
        self._child.close()

    def _start(self) -> None:
        try:
            self._child.start()
        except ChildError as error:
            raise ConfigError(f"reward function {self._path} {error}") from error

    def _outcomes(self, trajectories: Sequence[Trajectory]) -> tuple[list[dict[str, Any]], str]:
        """Outcomes in order, and what ended them early; empty where nothing did."""
        try:
            return self._child.call(tuple(trajectories), timeout_s=self._timeout_s + GRACE_S), ""
        except ChildTimeoutError as error:
            return error.results, f"no result within {self._timeout_s:g} s"
        except ChildError as error:
            return error.results, str(error)

    def _where_it_stopped(self, trajectories: Sequence[Trajectory], num_outcomes: int, problem: str) -> str:
        if self._batched:
            first, last = trajectories[0].prompt.task.task_id, trajectories[-1].prompt.task.task_id
            return f"{len(trajectories)} trajectories, tasks {first!r} to {last!r}: {problem}"
        return _where(trajectories[min(num_outcomes, len(trajectories) - 1)], problem)


def _score(outcome: dict[str, Any]) -> Score:
    steps = tuple(StepScore(token_index=token_index, score=score) for token_index, score in outcome["steps"])
    return Score(value=outcome["score"], steps=steps)


def _where(trajectory: Trajectory, problem: str) -> str:
    return f"task {trajectory.prompt.task.task_id!r}, sample {trajectory.sample_index}: {problem}"
