"""A pool that grows and shrinks while it works: nobody joins unadmitted, nothing that was in flight is lost."""

import sys
import threading
from collections.abc import Generator
from typing import Any

import pytest
import ray

from cluster.errors import ActorLostError
from cluster.processes.dispatch.newcomers import resized
from cluster.processes.pool import AGAIN, ActorPool
from cluster.processes.supervision import Supervision

MAX_LOSSES = 0  # so that a loss would end the test


class Worker:
    def __init__(self, name: str) -> None:
        self._name = name
        self._is_admitted = False

    def progress(self) -> int:
        return 0

    def admit(self) -> None:
        if "broken" in self._name:
            raise ActorLostError("it cannot hold the weights")
        self._is_admitted = True

    def name_of(self, item: int) -> tuple[str, bool]:
        return self._name, self._is_admitted

    def never(self) -> None:
        threading.Event().wait()


@pytest.fixture(scope="module", autouse=True)
def ray_cluster(local_ray: None) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test file


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def pool(notes: list[str]) -> ActorPool[Any]:
    def start(name: str) -> Any:
        return ray.remote(num_cpus=0, concurrency_groups={"progress": 1})(Worker).remote(name)

    def admission(actor: Any) -> Generator[ray.ObjectRef, Any, None]:
        yield actor.admit.remote()

    supervision: Supervision[Any] = Supervision(
        start=start,
        admission=admission,
        progress=lambda actor: actor.progress.options(concurrency_group="progress").remote(),
        deadline_s=60.0,
        start_deadline_s=60.0,
        max_losses=MAX_LOSSES,
        memory_advice="",
        note=notes.append,
        give_back=lambda name: notes.append(f"{name} is given back"),
    )
    return ActorPool({"worker 0": start("worker 0")}, supervision)


def worker(index: int) -> str:
    return f"worker {index}"


def names_that_work(pool: ActorPool[Any], num_items: int = 12) -> set[tuple[str, bool]]:
    results = pool.map_unordered(lambda actor, item: actor.name_of.remote(item), range(num_items), max_in_flight=1)
    return {each[2] for each in results if each is not None}


def test_further_actors_take_work_once_they_are_admitted(pool: ActorPool[Any], notes: list[str]) -> None:
    pool.resize(resized(pool.names, 3, worker))
    assert (pool.names, len(pool)) == (["worker 0", "worker 1", "worker 2"], 1)
    while len(pool) < 3:
        pool.finished([])
    assert names_that_work(pool) == {("worker 0", False), ("worker 1", True), ("worker 2", True)}
    assert sorted(notes) == ["worker 1 has joined", "worker 2 has joined"]
    pool.resize(resized(pool.names, 3, worker))
    assert len(pool.names) == 3


def test_what_an_actor_too_many_had_in_flight_is_done_by_another(pool: ActorPool[Any], notes: list[str]) -> None:
    pool.resize(resized(pool.names, 2, worker))
    while len(pool) < 2:
        pool.finished([])
    busy = pool.start("worker 1", lambda actor: actor.never.remote())
    done: list[tuple[str, int]] = []

    def call(actor: Any, item: int) -> ray.ObjectRef:
        return actor.name_of.remote(item)

    for each in pool.map_unordered(call, range(6), max_in_flight=2):
        assert each is not None
        item, attempt, (name, _) = each
        done.append((name, item))
        assert attempt == 1
        pool.resize(resized(pool.names, 1, worker))
    assert sorted(item for _, item in done) == list(range(6))
    assert {name for name, _ in done} == {"worker 0"}
    assert pool.finished([busy]) == [(busy, AGAIN)]
    assert (pool.names, pool.num_lost) == (["worker 0"], 0)
    assert notes[-1] == "worker 1 is given back"
    pool.resize(resized(pool.names, 2, worker))  # the name is free again
    while len(pool) < 2:
        pool.finished([])
    assert names_that_work(pool) == {("worker 0", False), ("worker 1", True)}


def test_one_that_does_not_come_is_given_up_and_is_no_loss(pool: ActorPool[Any], notes: list[str]) -> None:
    pool.resize(["worker 0", "broken 0"])
    while len(pool.names) > 1:
        pool.finished([], timeout_s=1.0)
    assert notes == [
        "broken 0 is given back",
        "broken 0 has not come (it cannot hold the weights); the run goes on without it",
    ]
    assert names_that_work(pool) == {("worker 0", False)}


def test_one_on_its_way_that_is_wanted_no_more_is_ended(pool: ActorPool[Any], notes: list[str]) -> None:
    pool.resize(resized(pool.names, 2, worker))
    pool.resize(resized(pool.names, 1, worker))
    assert pool.names == ["worker 0"]
    assert names_that_work(pool) == {("worker 0", False)}
    assert notes == ["worker 1 is given back"]
