"""Dispatch over real Ray actors: who gets what, in which order results come, what a failure says."""

from collections.abc import Iterator

import pytest
import ray

from cluster.errors import ConfigError, DataError, RaywardError
from cluster.pool import ActorPool


class Gate:
    """Calls wait at it until it is opened, so that tests decide the order in which calls finish."""

    def __init__(self) -> None:
        import asyncio

        self._event = asyncio.Event()
        self._most_waiting = 0
        self._waiting = 0

    async def open(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        self._waiting += 1
        self._most_waiting = max(self._most_waiting, self._waiting)
        await self._event.wait()
        self._waiting -= 1

    async def most_waiting(self) -> int:
        return self._most_waiting


class Worker:
    def __init__(self, name: str) -> None:
        self._name = name
        self._num_calls = 0

    async def double(self, number: int) -> tuple[str, int]:
        self._num_calls += 1
        return self._name, 2 * number

    async def double_behind(self, gate: ray.actor.ActorHandle, number: int) -> tuple[str, int]:
        await gate.wait.remote()
        return await self.double(number)

    async def num_calls(self) -> int:
        return self._num_calls

    async def refuse(self, number: int) -> None:
        raise DataError(f"task {number}: no")

    async def crash(self, number: int) -> None:
        raise ZeroDivisionError(number)

    async def die(self, number: int) -> None:
        import os

        os._exit(1)


RemoteGate = ray.remote(num_cpus=0)(Gate)
RemoteWorker = ray.remote(num_cpus=0)(Worker)


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


def _pool(*names: str) -> ActorPool:
    return ActorPool({name: RemoteWorker.remote(name) for name in names})


def test_every_item_comes_back_with_its_result_and_work_is_shared() -> None:
    results = dict(_pool("a", "b").map_unordered(lambda actor, n: actor.double.remote(n), range(10), max_in_flight=2))
    assert {n: doubled for n, (_, doubled) in results.items()} == {n: 2 * n for n in range(10)}
    assert {name for name, _ in results.values()} == {"a", "b"}


def test_results_come_as_they_finish() -> None:
    gate = RemoteGate.remote()
    pool = _pool("a", "b")

    def call(actor: ray.actor.ActorHandle, number: int) -> ray.ObjectRef:
        return actor.double_behind.remote(gate, number) if number == 0 else actor.double.remote(number)

    results = pool.map_unordered(call, range(4), max_in_flight=4)
    assert sorted(next(results)[0] for _ in range(3)) == [1, 2, 3]
    ray.get(gate.open.remote())
    assert [number for number, _ in results] == [0]


def test_a_busy_actor_gets_no_more_than_its_share() -> None:
    gate = RemoteGate.remote()
    pool = _pool("a", "b")

    def call(actor: ray.actor.ActorHandle, number: int) -> ray.ObjectRef:
        return actor.double_behind.remote(gate, number) if number == 0 else actor.double.remote(number)

    results = pool.map_unordered(call, range(8), max_in_flight=1)
    quick = dict(next(results) for _ in range(7))
    busy = {"a", "b"} - {name for name, _ in quick.values()}
    assert len(busy) == 1  # the one that holds item 0 got nothing else
    assert pool.loads() == {name: int(name in busy) for name in ("a", "b")}
    ray.get(gate.open.remote())
    list(results)


def test_stopping_early_cancels_what_runs_and_frees_the_actors() -> None:
    gate = RemoteGate.remote()
    pool = _pool("a")

    def call(actor: ray.actor.ActorHandle, number: int) -> ray.ObjectRef:
        return actor.double_behind.remote(gate, number) if number else actor.double.remote(number)

    results = pool.map_unordered(call, range(3), max_in_flight=3)
    assert next(results) == (0, ("a", 0))
    results.close()
    assert pool.loads() == {"a": 0}
    ray.get(gate.open.remote())
    assert pool.broadcast(lambda actor: actor.num_calls.remote()) == {"a": 1}


def test_broadcast_reaches_every_actor_by_name() -> None:
    assert _pool("a", "b").broadcast(lambda actor: actor.double.remote(3)) == {"a": ("a", 6), "b": ("b", 6)}


def test_our_own_errors_arrive_as_they_were_raised() -> None:
    pool = _pool("a")
    with pytest.raises(DataError, match="task 7: no"):
        list(pool.map_unordered(lambda actor, n: actor.refuse.remote(n), [7], max_in_flight=1))
    with pytest.raises(DataError, match="task 8: no"):
        pool.broadcast(lambda actor: actor.refuse.remote(8))
    assert pool.loads() == {"a": 0}


def test_other_errors_name_the_actor() -> None:
    with pytest.raises(RaywardError, match=r"actor 'a' failed: ZeroDivisionError\(7\)"):
        list(_pool("a").map_unordered(lambda actor, n: actor.crash.remote(n), [7], max_in_flight=1))


def test_a_lost_actor_is_named() -> None:
    with pytest.raises(RaywardError, match="actor 'a' is lost"):
        list(_pool("a").map_unordered(lambda actor, n: actor.die.remote(n), [7], max_in_flight=1))


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one actor"):
        ActorPool({})
