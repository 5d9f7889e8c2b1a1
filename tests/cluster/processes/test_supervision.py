"""Actors that die, hang or lose their engine: replaced, admitted, and their work done by another; over real Ray actors."""

import os
import signal
import sys
import time
from collections.abc import Generator, Iterator
from typing import Any

import pytest
import ray

from cluster.errors import ActorLostError, RaywardError
from cluster.processes.pool import ActorPool, Supervision

DEADLINE_S = 3.0


class Worker:
    def __init__(self, *, load_s: float = 0.0) -> None:
        time.sleep(load_s)
        self._admitted = False

    def pid(self) -> int:
        return os.getpid()

    def admit(self) -> None:
        self._admitted = True

    def is_admitted(self) -> bool:
        return self._admitted

    def double(self, number: int) -> int:
        time.sleep(0.05)
        return 2 * number

    def lose_engine(self, number: int) -> int:
        if not self._admitted:
            raise ActorLostError("its engine has died")
        return self.double(number)

    def die(self, number: int) -> int:
        os._exit(number)

    def die_of_three(self, number: int) -> int:
        if number == 3:
            os._exit(number)
        return self.double(number)


RemoteWorker = ray.remote(num_cpus=0)(Worker)


@pytest.fixture(scope="module", autouse=True)
def ray_cluster(local_ray: None) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test file


def admission(actor: Any) -> Generator[ray.ObjectRef, Any, None]:
    assert (yield actor.is_admitted.remote()) is False
    yield actor.admit.remote()


class Watched:
    """A pool of two, and what was told about it."""

    def __init__(
        self, *, max_losses: int = 3, load_s: float = 0.0, new_load_s: float = 0.0, start_deadline_s: float = 60.0
    ) -> None:
        self.notes: list[str] = []
        self.pool: ActorPool[Any] = ActorPool(
            {name: RemoteWorker.remote(load_s=load_s) for name in ("a", "b")},
            Supervision(
                start=lambda name: RemoteWorker.remote(load_s=new_load_s),
                admission=admission,
                deadline_s=DEADLINE_S,
                start_deadline_s=start_deadline_s,
                max_losses=max_losses,
                note=self.notes.append,
            ),
        )
        self.pids = self.pool.broadcast(lambda actor: actor.pid.remote())

    def doubled(self, numbers: range) -> Iterator[tuple[int, int, int]]:
        return self.pool.map_unordered(lambda actor, number: actor.double.remote(number), numbers, max_in_flight=2)

    def wait_for(self, num_actors: int) -> None:
        while len(self.pool) < num_actors:
            self.pool.finished([], timeout_s=1.0)


@pytest.mark.parametrize("kill_after", [0, 1, 7])
def test_each_item_is_done_once_when_an_actor_is_killed(kill_after: int) -> None:
    watched = Watched()
    results = []
    for done, result in enumerate(watched.doubled(range(30))):
        if done == kill_after:
            os.kill(watched.pids["a"], signal.SIGKILL)
        results.append(result)
    assert sorted((number, double) for number, _, double in results) == [(number, 2 * number) for number in range(30)]
    assert {attempt for _, attempt, _ in results} <= {1, 2}
    watched.wait_for(2)
    assert watched.pool.num_lost == 1
    assert [note.split(" (")[0] for note in watched.notes] == ["a is lost", "a is back"]
    assert watched.pool.broadcast(lambda actor: actor.is_admitted.remote()) == {"b": False, "a": True}


def test_an_actor_that_hangs_is_lost_by_its_deadline() -> None:
    watched = Watched()
    started = 0.0
    results: list[tuple[int, int, int]] = []
    for result in watched.doubled(range(30)):
        if not results:
            os.kill(watched.pids["a"], signal.SIGSTOP)
            started = time.monotonic()
        results.append(result)
    assert sorted((number, double) for number, _, double in results) == [(number, 2 * number) for number in range(30)]
    assert max(attempt for _, attempt, _ in results) == 2
    assert time.monotonic() - started >= DEADLINE_S  # its items were waited for so long
    assert f"none has finished for {DEADLINE_S:g} s" in watched.notes[0]
    watched.wait_for(2)


def test_an_actor_that_still_loads_has_no_deadline() -> None:
    watched = Watched(load_s=DEADLINE_S + 2)
    assert (watched.pool.num_lost, watched.notes) == (0, [])


def test_a_replacement_that_does_not_come_up_is_lost_too() -> None:
    watched = Watched(max_losses=1, new_load_s=600.0, start_deadline_s=1.0)
    os.kill(watched.pids["a"], signal.SIGKILL)
    os.kill(watched.pids["b"], signal.SIGKILL)
    with pytest.raises(RaywardError, match="was lost 2 times in a row.*it has not started within 1 s"):
        list(watched.doubled(range(4)))


def test_what_is_pending_is_told_by_name() -> None:
    watched = Watched()
    refs = [watched.pool.start("a", lambda actor: actor.double.remote(3), about="twice 3")]
    (pending,) = watched.pool.pending()
    assert (pending.whom, pending.what) == ("a", "twice 3")
    watched.pool.finished(refs)
    assert watched.pool.pending() == []


def test_all_actors_lost_at_once_is_a_wait_and_not_an_end() -> None:
    watched = Watched()
    for pid in watched.pids.values():
        os.kill(pid, signal.SIGKILL)
    assert sorted((number, double) for number, _, double in watched.doubled(range(4))) == [(n, 2 * n) for n in range(4)]
    watched.wait_for(2)
    assert watched.pool.num_lost == 2


def test_an_actor_without_its_engine_is_replaced() -> None:
    watched = Watched()
    call = lambda actor, number: actor.lose_engine.remote(number)  # noqa: E731
    results = watched.pool.map_unordered(call, range(4), max_in_flight=1)
    assert sorted((number, double) for number, _, double in results) == [(number, 2 * number) for number in range(4)]
    assert "its engine has died" in watched.notes[0]


def test_a_broadcast_reaches_those_that_live() -> None:
    watched = Watched()
    os.kill(watched.pids["a"], signal.SIGKILL)
    assert watched.pool.broadcast(lambda actor: actor.double.remote(3)) == {"b": 6}
    watched.wait_for(2)
    assert set(watched.pool.broadcast(lambda actor: actor.double.remote(3))) == {"a", "b"}


def test_an_item_that_kills_its_actors_ends_the_run_though_others_finish_in_between() -> None:
    watched = Watched(max_losses=1)
    call = lambda actor, number: actor.die_of_three.remote(number)  # noqa: E731
    with pytest.raises(RaywardError, match="2 actors were lost while they worked on 3|lost 2 times in a row"):
        list(watched.pool.map_unordered(call, range(40), max_in_flight=1))


def test_an_item_that_kills_every_actor_ends_the_run() -> None:
    watched = Watched(max_losses=2)
    with pytest.raises(RaywardError, match="3 actors were lost while they worked on 3|was lost 3 times in a row"):
        list(watched.pool.map_unordered(lambda actor, number: actor.die.remote(number), [3], max_in_flight=1))
