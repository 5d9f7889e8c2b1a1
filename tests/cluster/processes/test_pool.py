"""Dispatch over real Ray actors: who gets what, in which order results come, what a failure says."""

import asyncio
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from cluster.errors import ConfigError, DataError, RaywardError
from cluster.processes.pool import ActorPool
from tests.records import arrived


class Gate:
    """Calls wait at it until their test opens it: so tests, not clocks, decide the order in which calls finish."""

    def __init__(self) -> None:
        self._opened: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def open(self, test: str) -> None:
        self._opened[test].set()

    async def wait(self, test: str) -> None:
        await self._opened[test].wait()


class Worker:
    def __init__(self, name: str, gate: Any) -> None:
        self._name = name
        self._gate = gate
        self._cancelled = asyncio.Event()

    async def double(self, number: int) -> tuple[str, int]:
        return self._name, 2 * number

    async def double_behind(self, test: str, number: int) -> tuple[str, int]:
        try:
            await self._gate.wait.remote(test)
        except asyncio.CancelledError:
            self._cancelled.set()
            raise
        return await self.double(number)

    async def wait_until_cancelled(self) -> bool:
        return await self._cancelled.wait()

    async def refuse(self, number: int) -> None:
        raise DataError(f"task {number}: no")

    async def crash(self, number: int) -> None:
        raise ZeroDivisionError(number)

    async def die(self, number: int) -> None:
        os._exit(number)


RemoteGate = ray.remote(num_cpus=0)(Gate)
RemoteWorker = ray.remote(num_cpus=0)(Worker)


@pytest.fixture(scope="module")
def gate(local_ray: None) -> Any:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test file
    return RemoteGate.remote()


@pytest.fixture(scope="module")
def pool(gate: Any) -> ActorPool[Any]:
    return ActorPool({name: RemoteWorker.remote(name, gate) for name in ("a", "b")})


def _map(pool: ActorPool[Any], test: str, numbers: range, *, held: int, max_in_flight: int) -> Iterator[tuple[int, int, Any]]:
    """Double the numbers; `held` waits at the gate."""

    def call(actor: Any, number: int) -> ray.ObjectRef:
        return actor.double_behind.remote(test, number) if number == held else actor.double.remote(number)

    return arrived(pool.map_unordered(call, numbers, max_in_flight=max_in_flight))


def test_every_item_comes_back_with_its_result_and_work_is_shared(pool: ActorPool[Any]) -> None:
    results = {
        n: result
        for n, _, result in arrived(pool.map_unordered(lambda actor, n: actor.double.remote(n), range(10), max_in_flight=2))
    }
    assert {n: doubled for n, (_, doubled) in results.items()} == {n: 2 * n for n in range(10)}
    assert {name for name, _ in results.values()} == {"a", "b"}


def test_results_come_as_they_finish(pool: ActorPool[Any], gate: Any) -> None:
    results = _map(pool, "order", range(4), held=0, max_in_flight=4)
    assert sorted(next(results)[0] for _ in range(3)) == [1, 2, 3]
    ray.get(gate.open.remote("order"))
    assert [number for number, _, _ in results] == [0]


def test_a_caller_with_other_work_is_not_kept_waiting(pool: ActorPool[Any], gate: Any) -> None:
    def doubled(test: str, numbers: range, held: int) -> Iterator[tuple[int, int, Any] | None]:
        def call(actor: Any, number: int) -> ray.ObjectRef:
            return actor.double_behind.remote(test, number) if number == held else actor.double.remote(number)

        return pool.map_unordered(call, numbers, max_in_flight=4, patience_s=0.01)

    first, second = doubled("patience", range(1), 0), doubled("patience", range(10, 12), -1)
    assert next(first) is None  # and stays so until the gate opens
    assert sorted(each[0] for each in second if each is not None) == [10, 11]
    assert next(first) is None
    ray.get(gate.open.remote("patience"))
    assert [each[0] for each in first if each is not None] == [0]


def test_items_that_are_still_to_come_are_taken_when_they_do(pool: ActorPool[Any]) -> None:
    seen: list[int] = []

    def items() -> Iterator[int | None]:
        yield 1
        while not seen:
            yield None  # not yet
        yield 2
        yield None
        yield 3

    results = pool.map_unordered(lambda actor, n: actor.double.remote(n), items(), max_in_flight=4, patience_s=0.01)
    for each in results:
        if each is not None:
            seen.append(each[0])
    assert (seen[0], sorted(seen)) == (1, [1, 2, 3])


def test_a_busy_actor_gets_no_more_than_its_share(pool: ActorPool[Any], gate: Any) -> None:
    results = _map(pool, "share", range(8), held=0, max_in_flight=1)
    quick = [next(results)[2][0] for _ in range(7)]
    assert len(set(quick)) == 1  # the actor that holds item 0 got nothing else
    assert sorted(pool.loads().values()) == [0, 1]
    ray.get(gate.open.remote("share"))
    assert [number for number, _, _ in results] == [0]


def test_stopping_early_cancels_what_runs(pool: ActorPool[Any]) -> None:
    results = _map(pool, "early", range(4), held=0, max_in_flight=2)
    names = [next(results)[2][0] for _ in range(3)]
    holder = "a" if names.count("a") == 1 else "b"  # it answered for one item of its two
    results.close()  # type: ignore[attr-defined]
    assert pool.loads() == {"a": 0, "b": 0}
    assert ray.get(pool.actors[holder].wait_until_cancelled.remote())


def test_broadcast_reaches_every_actor_by_name(pool: ActorPool[Any]) -> None:
    assert pool.broadcast(lambda actor: actor.double.remote(3)) == {"a": ("a", 6), "b": ("b", 6)}


def test_our_own_errors_arrive_as_they_were_raised(pool: ActorPool[Any]) -> None:
    with pytest.raises(DataError, match="task 7: no"):
        list(pool.map_unordered(lambda actor, n: actor.refuse.remote(n), [7], max_in_flight=1))
    with pytest.raises(DataError, match="task 8: no"):
        pool.broadcast(lambda actor: actor.refuse.remote(8))
    assert pool.loads() == {"a": 0, "b": 0}


def test_other_errors_name_the_actor(pool: ActorPool[Any]) -> None:
    with pytest.raises(RaywardError, match=r"actor '[ab]' failed: ZeroDivisionError\(7\)"):
        list(pool.map_unordered(lambda actor, n: actor.crash.remote(n), [7], max_in_flight=1))


def test_a_lost_actor_is_named(gate: Any) -> None:
    mortal = ActorPool({"mortal": RemoteWorker.remote("mortal", gate)})
    with pytest.raises(RaywardError, match="actor 'mortal' is lost"):
        list(mortal.map_unordered(lambda actor, n: actor.die.remote(n), [7], max_in_flight=1))


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one actor"):
        ActorPool({})
