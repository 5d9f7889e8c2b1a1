"""A desk before pools of scorers: real Ray actors with fake judges, and those of a configuration."""

import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import ray

from actors.config import BuiltInFunctionScorerConfig, PythonScorerConfig, SupervisionConfig
from actors.scoring.desk import ScoringDesk, start_scorers
from actors.scoring.remote import FromStore
from actors.scoring.stage import ScorerPools, WeightedScorer, scorer_seats
from cluster.errors import RaywardError
from cluster.messages import Message
from cluster.processes.pool import ActorPool
from cluster.processes.reservations.seats import Seats
from cluster.types import Prompt, Reward, Score, Task, Trajectory, Unscored
from tests.records import completion


class GatedJudge(FromStore):
    """A point for each character, once its test has opened the gate. Remembers how many texts each call had."""

    def __init__(self) -> None:
        self._gate = threading.Event()
        self._call_sizes: list[int] = []

    def open(self) -> None:
        self._gate.set()

    def score(self, trajectories: Sequence[Trajectory]) -> list[Score]:
        self._call_sizes.append(len(trajectories))
        self._gate.wait()
        if any(trajectory.completion.text == "refuse" for trajectory in trajectories):
            raise ZeroDivisionError("oops")
        return [Score(value=float(len(trajectory.completion.text))) for trajectory in trajectories]

    def call_sizes(self) -> list[int]:
        return self._call_sizes


@pytest.fixture(scope="module", autouse=True)
def ray_cluster(local_ray: None) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test file


def texts(*completions: str) -> list[Trajectory]:
    prompt = Prompt(task=Task(task_id="a", messages=(Message(role="user", content="Say it."),)), text="Say it.", token_ids=(1,))
    return [Trajectory(prompt=prompt, sample_index=0, completion=completion(2, text=text)) for text in completions]


def desk_of(judge: Any) -> ScoringDesk:
    pool: ActorPool[Any] = ActorPool({"judge 0": judge})
    return ScoringDesk(lambda note: ScorerPools({"judge": WeightedScorer(weight=2.0, pool=pool)}))


def totals(answers: Sequence[Reward | Unscored]) -> list[float]:
    return [answer.total for answer in answers if isinstance(answer, Reward)]


def test_whoever_asks_meanwhile_is_answered_together() -> None:
    judge = ray.remote(GatedJudge).options(num_cpus=0, max_concurrency=2).remote()
    desk = desk_of(judge)
    with ThreadPoolExecutor() as askers:
        first = askers.submit(desk.score, texts("a"))
        while not ray.get(judge.call_sizes.remote()):
            pass
        others = [askers.submit(desk.score, texts("b" * number, "c")) for number in (2, 3, 4)]
        while desk._waiting.qsize() < 6:
            pass
        ray.get(judge.open.remote())
        assert totals(first.result()) == [2.0]
        assert [totals(other.result()) for other in others] == [[4.0, 2.0], [6.0, 2.0], [8.0, 2.0]]
    assert ray.get(judge.call_sizes.remote()) == [1, 6]
    assert desk.score([]) == []


def test_a_scorer_that_fails_fails_for_those_who_asked() -> None:
    judge = ray.remote(GatedJudge).options(num_cpus=0).remote()
    ray.get(judge.open.remote())
    desk = desk_of(judge)
    with pytest.raises(RaywardError, match="ZeroDivisionError"):
        desk.score(texts("refuse"))
    assert totals(desk.score(texts("fine"))) == [8.0]


def test_configured_scorers_start_in_their_seats_and_again_with_the_desk() -> None:
    configs = (
        BuiltInFunctionScorerConfig(function="length", weight=-1.0, num_replicas=2, num_cpus=0.7),
        PythonScorerConfig(name="dumps", path="json:dumps", num_cpus=0),
    )
    seats = Seats(print)
    seats.reserve(scorer_seats(configs), deadline_s=60.0)
    start = partial(start_scorers, configs=configs, prompt_format="plain", supervision=SupervisionConfig(), seats=seats.taken)
    desk = ray.remote(ScoringDesk).options(num_cpus=0, max_restarts=1, max_task_retries=1).remote(start)
    assert_scores(desk)
    ray.kill(desk, no_restart=False)
    assert_scores(desk)  # its scorers sit where those of the first sat: two CPUs would not hold both
    ray.kill(desk)
    seats.close()


def assert_scores(desk: Any) -> None:
    [answer] = ray.get(desk.score.remote(texts("fine")))
    assert isinstance(answer, Unscored)
    assert answer.problem.startswith("reward function json:dumps raised TypeError")
    assert ray.get(desk.notes.remote()) == []
