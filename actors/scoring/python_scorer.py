"""A scorer that is a reward function of the user, run in a process that is killed when the function hangs."""

from collections.abc import Sequence
from typing import Any

from actors.config import PythonScorerConfig
from actors.user_code.child_process import ChildError, ChildLimits, ChildProcess, ChildTimeoutError
from cluster.errors import ConfigError
from cluster.types import Score, StepScore, Trajectory, Unscored

MIB_BYTES, GIB_BYTES = 1 << 20, 1 << 30
GRACE_S = 0.5  # an async function's own time-out comes first: it ends one call, not the process
MAX_STOPS = 3  # of the process in one call: each may cost a time-out


class PythonScorer:
    """Implements `Scorer` with a user's function. A score that cannot be had is never a zero."""

    def __init__(self, config: PythonScorerConfig) -> None:
        self._path = config.path
        self._batched = config.batched
        self._timeout_s = config.timeout_s
        self._child = ChildProcess(
            "actors.user_code.function_child:build",
            {
                "path": config.path,
                "batched": config.batched,
                "timeout_s": config.timeout_s,
                "max_concurrency": config.max_concurrency,
            },
            limits=ChildLimits(
                max_memory_bytes=None if config.max_memory_gib is None else int(config.max_memory_gib * GIB_BYTES),
                max_file_bytes=int(config.max_file_mib * MIB_BYTES),
                max_processes=config.max_processes,
            ),
            environment=config.environment,
            separate=config.separate_user,
        )

    def score(self, trajectories: Sequence[Trajectory]) -> list[Score | Unscored]:
        """One score a trajectory, in order, or what happened instead. Raises `ConfigError` where the function cannot start."""
        self._start()
        if self._batched:
            return self._score_together(trajectories)
        scores: list[Score | Unscored] = []
        for _ in range(MAX_STOPS):
            outcomes, stopped = self._outcomes(trajectories[len(scores) :])
            scores += [self._score(outcome) for outcome in outcomes]
            if not stopped:
                return scores
            scores.append(self._unscored(stopped))  # the one that was being judged; those after it are tried again
            if len(scores) == len(trajectories):
                return scores
        untried = len(trajectories) - len(scores)
        return scores + [self._unscored(f"was not asked, after {MAX_STOPS} others of the call had stopped it")] * untried

    def progress(self) -> int:
        """Replies of the function's process."""
        return self._child.num_replies

    def close(self) -> None:
        """End the process."""
        self._child.close()

    def _start(self) -> None:
        try:
            self._child.start()
        except ChildError as error:
            raise ConfigError(f"reward function {self._path} {error}") from error

    def _score_together(self, trajectories: Sequence[Trajectory]) -> list[Score | Unscored]:
        outcomes, stopped = self._outcomes(trajectories)
        return [self._unscored(stopped)] * len(trajectories) if stopped else [self._score(outcome) for outcome in outcomes]

    def _outcomes(self, trajectories: Sequence[Trajectory]) -> tuple[list[dict[str, Any]], str]:
        """Outcomes in order, and what ended them early; empty where nothing did."""
        if not trajectories:
            return [], ""
        try:
            return self._child.call(tuple(trajectories), timeout_s=self._timeout_s + GRACE_S), ""
        except ChildTimeoutError as error:
            return error.results, f"no result within {self._timeout_s:g} s"
        except ChildError as error:
            return error.results, str(error)

    def _score(self, outcome: dict[str, Any]) -> Score | Unscored:
        if "error" in outcome:
            return self._unscored(outcome["error"])
        steps = tuple(StepScore(token_index=token_index, score=score) for token_index, score in outcome["steps"])
        return Score(value=outcome["score"], steps=steps)

    def _unscored(self, problem: str) -> Unscored:
        return Unscored(problem=f"reward function {self._path} {problem}")
