"""The scorers of a token environment: a desk that env runners ask, on whatever node they are."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from actors.scoring.desk import ScoringDesk, start_scorers
from actors.scoring.stage import scorer_seats
from cluster.errors import DataError, RaywardError
from cluster.processes.losses import failure_of
from cluster.processes.reservations.seats import Seats
from cluster.types import Reward, Trajectory, Unscored
from learners.settings.language_model.tokens import TokenRunConfig

AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True, slots=True)
class DeskJudge:
    """Implements `learners.environments.token.Judge`, in any process."""

    desk: ActorHandle

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[float]:
        """Raises `RaywardError` where one has no score: an episode without its reward would teach something else."""
        answers: list[Reward | Unscored] = _answer(lambda: ray.get(self.desk.score.remote(list(trajectories))))
        problems = [answer.problem for answer in answers if isinstance(answer, Unscored)]
        if problems:
            raise DataError(
                f"{len(problems)} of {len(answers)} texts have no score; first, {problems[0]}; correct the scorer and resume"
            )
        return [answer.total for answer in answers if isinstance(answer, Reward)]

    def notes(self) -> list[str]:
        """What people should know of the scorers, since the last call."""
        return _answer(lambda: ray.get(self.desk.notes.remote()))


@contextmanager
def scoring_desk(config: TokenRunConfig, note: Callable[[str], None]) -> Iterator[DeskJudge]:
    """Inside, scorers are at work. `note`: told what they wait for. Raises `RaywardError` where they do not start."""
    seats = Seats(note)
    room_s = max(config.supervision.start_deadline_s, config.wait_for_nodes_s)
    seats.reserve(scorer_seats(config.scorers), deadline_s=room_s)
    desk = (
        ray.remote(ScoringDesk)
        .options(num_cpus=0, max_concurrency=config.learner.num_env_runners + 2, max_restarts=-1, max_task_retries=-1)
        .remote(
            functools.partial(
                start_scorers,
                configs=config.scorers,
                prompt_format=config.task.prompts.prompt_format,
                supervision=config.supervision,
                seats=seats.taken,
            )
        )
    )
    judge = DeskJudge(desk)
    try:
        judge.notes()  # answers when all scorers are there
        yield judge
    finally:
        ray.kill(desk)
        seats.close()


def _answer(ask: Callable[[], AnswerT]) -> AnswerT:
    try:
        return ask()
    except RayError as error:
        if isinstance(error, RayTaskError) and isinstance(error.cause, RaywardError):
            raise error.cause from error
        raise failure_of("scoring desk", error) from error
