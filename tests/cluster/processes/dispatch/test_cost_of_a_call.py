"""What one more item of a map costs does not grow with the calls in flight: counted on calls that never leave this process."""

import sys
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from cluster.processes import pool as pool_module
from cluster.processes.pool import ActorPool
from cluster.processes.supervision import Supervision

POOL_FILES = str(Path(pool_module.__file__).parent)
NUM_COUNTED = 200  # items


class FakeRef:
    """A reference that ends when its test says so, and counts how often it is looked up."""

    num_lookups = 0  # of all of them

    def __init__(self, number: int) -> None:
        self.number = number
        self.ended: Future[int] = Future()

    def __hash__(self) -> int:
        FakeRef.num_lookups += 1
        return id(self)

    def future(self) -> "Future[int]":
        return self.ended


@dataclass(slots=True, eq=False)
class FakeActors:
    """All actors of a pool: their calls end one by one, the oldest first."""

    in_flight: deque[FakeRef] = field(default_factory=deque)
    num_probes: int = 0

    def call(self, number: int) -> FakeRef:
        self.in_flight.append(FakeRef(number))
        return self.in_flight[-1]

    def end_one(self) -> None:
        ref = self.in_flight.popleft()
        ref.ended.set_result(ref.number)

    def progress(self) -> FakeRef:
        self.num_probes += 1
        return FakeRef(0)


class Operations:
    """Counts what Python executes in the files of the pool, operation by operation."""

    def __init__(self) -> None:
        self.num = 0
        self._before = sys.gettrace()  # coverage's, which goes on after

    def __enter__(self) -> "Operations":
        sys.settrace(self._entered)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _entered(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(POOL_FILES):
            return None
        frame.f_trace_opcodes = True
        return self._executed

    def _executed(self, frame: FrameType, event: str, argument: Any) -> Any:
        self.num += event == "opcode"
        return self._executed


def never_admitted(actor: Any) -> Generator[Any, Any, None]:
    yield from ()


def cost_of_an_item(monkeypatch: pytest.MonkeyPatch, *, num_in_flight: int, num_actors: int, is_supervised: bool) -> list[float]:
    """(operations, lookups of references) an item, while so many calls are in flight beside it."""
    monkeypatch.setattr("cluster.processes.pool.ray.cancel", lambda ref: None)
    actors = FakeActors()
    supervision: Supervision[Any] = Supervision(
        start=lambda name: actors,
        admission=never_admitted,
        progress=lambda actor: actor.progress(),
        deadline_s=3600.0,
        start_deadline_s=3600.0,
        max_losses=0,
        memory_advice="",
        note=pytest.fail,
    )
    pool: ActorPool[Any] = ActorPool({str(n): actors for n in range(num_actors)}, supervision if is_supervised else None)
    results = pool.map_unordered(
        lambda actor, number: actor.call(number),
        range(num_in_flight + 2 * NUM_COUNTED),
        max_in_flight=num_in_flight // num_actors,
        patience_s=0.0,
    )
    assert next(results) is None  # all that may be in flight is, and nothing has ended
    assert len(actors.in_flight) == num_in_flight
    assert set(pool.loads().values()) == {num_in_flight // num_actors}
    FakeRef.num_lookups, found = 0, []
    with Operations() as operations:
        for _ in range(NUM_COUNTED):
            actors.end_one()
            found.append(next(results))
    num_lookups = FakeRef.num_lookups
    assert found == [(number, 1, number) for number in range(NUM_COUNTED)]
    assert actors.num_probes == (num_actors if is_supervised else 0)  # one each when it got its first work
    results.close()  # type: ignore[attr-defined]
    assert set(pool.loads().values()) == {0}
    return [operations.num / NUM_COUNTED, num_lookups / NUM_COUNTED]


@pytest.mark.parametrize("is_supervised", [False, True])
def test_an_item_costs_the_same_whatever_is_in_flight_beside_it(monkeypatch: pytest.MonkeyPatch, is_supervised: bool) -> None:
    few, many = (
        cost_of_an_item(monkeypatch, num_in_flight=num_in_flight, num_actors=16, is_supervised=is_supervised)
        for num_in_flight in (64, 4096)
    )
    assert many == pytest.approx(few, rel=0.01)


def test_an_item_costs_the_same_however_many_actors_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = (
        cost_of_an_item(monkeypatch, num_in_flight=512, num_actors=num_actors, is_supervised=True) for num_actors in (4, 64)
    )
    assert many == pytest.approx(few, rel=0.01)


def test_what_has_ended_for_another_map_is_not_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.processes.pool.ray.cancel", lambda ref: None)
    costs = []
    for num_of_the_other in (10, 1000):
        actors = FakeActors()
        pool: ActorPool[Any] = ActorPool({"a": actors})
        call = lambda actor, number: actor.call(number)  # noqa: E731
        other = pool.map_unordered(call, range(num_of_the_other), max_in_flight=2000, patience_s=0.0)
        assert next(other) is None
        mine = pool.map_unordered(call, range(NUM_COUNTED), max_in_flight=2000, patience_s=0.0)
        assert next(mine) is None
        for _ in range(num_of_the_other + 1):  # and one of mine
            actors.end_one()
        assert next(mine) == (0, 1, 0)
        FakeRef.num_lookups = 0
        with Operations() as operations:
            for number in range(1, NUM_COUNTED):
                actors.end_one()
                assert next(mine) == (number, 1, number)
        costs.append([operations.num, FakeRef.num_lookups])
        assert sorted(each[0] for each in other if each is not None) == list(range(num_of_the_other))
    assert costs[1] == pytest.approx(costs[0], rel=0.01)
