"""Whether a completion's answer equals the reference mathematically: 1/2 is 0.5, and x + 1 is 1 + x.

`math-verify` does it, in a child process: it measures time with signals, which need a main thread, and what it hands to sympy may
compute for ever or fill the memory. Its own time limits are off; the child is killed instead.

What a failure means depends on whose fault it is. The reference is parsed first and alone; if that fails, the data is at fault
and `DataError` is raised. The same living process is then given the completion, so what fails after that is the completion's
doing: an answer that is missing, that takes too long, or that takes the process down is wrong and scores 0. The last two are
logged and counted, because they are slow and a policy may learn to produce them.
"""

import logging
from functools import lru_cache

from actors.user_code.child_process import ChildError, ChildProcess, ChildStartError, ChildTimeoutError
from cluster.errors import DataError, RaywardError
from cluster.types import Task, Trajectory

logger = logging.getLogger("rayward")

TIMEOUT_S = 5.0  # for one answer; ordinary ones take milliseconds


def score(trajectory: Trajectory) -> float:
    """1 if the last answer in the completion equals the task's reference, else 0."""
    return _checker().score(trajectory)


@lru_cache(maxsize=1)
def _checker() -> "MathChecker":
    return MathChecker()


class MathChecker:
    """Compares answers in a child process, which starts with the first of them."""

    def __init__(self, *, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._child = ChildProcess("actors.rewards.math_verify_child:build", {})
        self.num_unjudged = 0  # completions that were too slow or took the process down

    def score(self, trajectory: Trajectory) -> float:
        """1 if the answer is right, else 0."""
        task = trajectory.prompt.task
        self._check_reference(task)
        try:
            (is_right,) = self._child.call((task.reference, trajectory.completion.text), timeout_s=self._timeout_s)
        except ChildError as error:
            self.num_unjudged += 1
            logger.warning(
                "math_verify could not judge sample %d of task %r, which scores 0: %s (%d such completions so far)",
                trajectory.sample_index,
                task.task_id,
                error,
                self.num_unjudged,
            )
            return 0.0
        return float(is_right)

    def close(self) -> None:
        """End the child process."""
        self._child.close()

    def _check_reference(self, task: Task) -> None:
        if not task.reference.strip():
            raise DataError(f"task {task.task_id!r} has no reference to compare with; add one, or take math_verify out")
        if self._problem_of(task):
            self._child.close()  # what completions before it left in the process must not count against the data
            if problem := self._problem_of(task):
                raise DataError(f"task {task.task_id!r} has the reference {task.reference!r}, which math_verify {problem}")

    def _problem_of(self, task: Task) -> str:
        """Of its reference; empty where it can be read."""
        cannot = "cannot read; write it as a number or as LaTeX, or use answer_match"
        try:
            (is_readable,) = self._child.call((task.reference, None), timeout_s=self._timeout_s)
        except ChildStartError as error:
            raise RaywardError(f"math_verify {error}") from error
        except ChildTimeoutError:
            return f"did not read within {self._timeout_s:g} s; give the machine less to do, or write it more simply"
        except ChildError:
            return cannot
        return "" if is_readable else cannot
