"""Processor time of the driver for each item that an actor pool hands out and takes back, by calls in flight and by actors.

Run: python -m tests.benchmarks.dispatch [--actors 4 16] [--without-ray] [--json], with nothing beside. In the first table calls
never leave the process, so that all that is measured is the pool. In the second they go to Ray actors of this machine, and the
time is that of all threads of the driver, Ray's included:

- `pool`: actors answer at once, so the driver is never idle, and many calls have ended each time it asks.
- `ray_alone`: the same without a pool. Calls go to all actors in turn and are fetched in order.
- `pool_held`: as many calls as said are held at the actors, and those that are measured come back one or a few at a time beside
  them, as from engines that decode for long.

The ratio is that of many calls in flight to few, over the same actors: 1 where the cost of an item does not depend on them.
"""

import argparse
import asyncio
import itertools
import json
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import islice
from typing import Any
from unittest.mock import patch

import ray

from cluster.processes import pool as pool_module
from cluster.processes.pool import ActorPool
from cluster.processes.runtime import ray_session

NUMS_IN_FLIGHT = (64, 512, 4096)
NUMS_ACTORS = (4, 16, 64)
NUM_ITEMS = 1024  # that are measured, while as many calls as wanted are in flight
MAX_CONCURRENCY = 2 * max(NUMS_IN_FLIGHT) // min(NUMS_ACTORS)  # calls that an actor can hold
NUM_REPEATS = 3

Measure = Callable[[Sequence[Any], int], float]  # of actors and calls in flight: microseconds an item


class InProcessRef:
    def __init__(self, number: int) -> None:
        self.number = number
        self.ended: Future[int] = Future()

    def future(self) -> "Future[int]":
        return self.ended


class InProcessActor:
    """Its calls end when it is told so, the oldest first."""

    def __init__(self, in_flight: deque[InProcessRef]) -> None:
        """`in_flight`: of all of them."""
        self.in_flight = in_flight

    def echo(self, number: int) -> InProcessRef:
        self.in_flight.append(InProcessRef(number))
        return self.in_flight[-1]

    def end_one(self) -> None:
        ref = self.in_flight.popleft()
        ref.ended.set_result(ref.number)


class Echo:
    def __init__(self) -> None:
        self._gate = asyncio.Event()

    async def echo(self, number: int, *, is_held: bool = False) -> int:
        if is_held:
            await self._gate.wait()
        return number

    async def let_go(self) -> None:
        """Those that are held."""
        self._gate.set()
        self._gate = asyncio.Event()


def in_process(actors: Sequence[InProcessActor], num_in_flight: int) -> float:
    """The pool alone."""
    pool = ActorPool({str(index): actor for index, actor in enumerate(actors)})
    with patch.object(pool_module.ray, "cancel"):
        results = pool.map_unordered(
            lambda actor, number: actor.echo(number),
            range(num_in_flight + NUM_ITEMS),
            max_in_flight=num_in_flight // len(actors),
            patience_s=0.0,
        )
        assert next(results) is None, "all that may be in flight is, and nothing has ended"
        started_s = time.process_time()
        for _ in range(NUM_ITEMS):
            actors[0].end_one()
            assert next(results) is not None
        seconds = time.process_time() - started_s
        results.close()  # type: ignore[attr-defined]
    actors[0].in_flight.clear()
    return 1e6 * seconds / NUM_ITEMS


def over_ray(actors: Sequence[Any], num_in_flight: int) -> float:
    """The pool with Ray below it, from the first call to the last result."""
    pool = ActorPool({str(index): actor for index, actor in enumerate(actors)})
    num_items = num_in_flight + NUM_ITEMS
    started_s = time.process_time()
    results = pool.map_unordered(
        lambda actor, number: actor.echo.remote(number), range(num_items), max_in_flight=num_in_flight // len(actors)
    )
    assert len(list(results)) == num_items
    return 1e6 * (time.process_time() - started_s) / num_items


def over_ray_held(actors: Sequence[Any], num_in_flight: int) -> float:
    """Beside calls that are held, with one more at each actor."""
    pool = ActorPool({str(index): actor for index, actor in enumerate(actors)})
    results = pool.map_unordered(
        lambda actor, number: actor.echo.remote(number, is_held=number < num_in_flight),
        range(num_in_flight + NUM_ITEMS + len(actors)),
        max_in_flight=num_in_flight // len(actors) + 1,
    )
    next(results)  # all that are held have begun
    started_s = time.process_time()
    assert len(list(islice(results, NUM_ITEMS))) == NUM_ITEMS
    seconds = time.process_time() - started_s
    ray.get([actor.let_go.remote() for actor in actors])
    for _ in results:
        pass
    return 1e6 * seconds / NUM_ITEMS


def ray_alone(actors: Sequence[Any], num_in_flight: int) -> float:
    """Calls in turn to all actors, fetched in order, from the first to the last."""
    num_items = num_in_flight + NUM_ITEMS
    refs: deque[Any] = deque()
    started_s = time.process_time()
    for number in range(num_items):
        refs.append(actors[number % len(actors)].echo.remote(number))
        if len(refs) == num_in_flight:
            ray.get(refs.popleft())
    for ref in refs:
        ray.get(ref)
    return 1e6 * (time.process_time() - started_s) / num_items


def measured(measures: dict[str, Measure], actors: Sequence[Any], nums_actors: Sequence[int]) -> list[dict[str, Any]]:
    """Medians, a row for each number of actors and of calls in flight; the measures take turns."""
    rows = []
    for num_actors, num_in_flight in itertools.product(nums_actors, NUMS_IN_FLIGHT):
        found: dict[str, list[float]] = {name: [] for name in measures}
        for _ in range(NUM_REPEATS):
            for name, measure in measures.items():
                found[name].append(measure(actors[:num_actors], num_in_flight))
        medians = {name: round(statistics.median(values), 1) for name, values in found.items()}
        rows.append({"actors": num_actors, "in_flight": num_in_flight, **medians})
    return rows


def ratios(rows: list[dict[str, Any]], name: str) -> dict[int, float]:
    """By number of actors: an item with the most calls in flight over one with the fewest."""
    few, many = ({row["actors"]: row[name] for row in rows if row["in_flight"] == count} for count in NUMS_IN_FLIGHT[::2])
    return {num_actors: round(many[num_actors] / few[num_actors], 2) for num_actors in few}


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["  ".join(f"{name:>10}" for name in rows[0])]
    lines += ["  ".join(f"{value:>10}" for value in row.values()) for row in rows]
    for name in list(rows[0])[2:]:
        over = ", ".join(f"{ratio:.2f} over {actors} actors" for actors, ratio in ratios(rows, name).items())
        lines.append(f"{name}, {NUMS_IN_FLIGHT[-1]} in flight to {NUMS_IN_FLIGHT[0]}: {over}")
    return "\n".join([*lines, "", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, nargs="+", default=NUMS_ACTORS)
    parser.add_argument("--without-ray", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    in_flight: deque[InProcessRef] = deque()
    in_process_actors = [InProcessActor(in_flight) for _ in range(max(arguments.actors))]
    tables = {"in_process": measured({"pool": in_process}, in_process_actors, arguments.actors)}
    if not arguments.without_ray:
        with ray_session(num_cpus=2, include_dashboard=False):
            echo = ray.remote(num_cpus=0, max_concurrency=MAX_CONCURRENCY)(Echo)
            actors = [echo.remote() for _ in range(max(arguments.actors))]
            ray.get([actor.echo.remote(0) for actor in actors])
            measures: dict[str, Measure] = {"pool": over_ray, "ray_alone": ray_alone, "pool_held": over_ray_held}
            tables["over_ray"] = measured(measures, actors, arguments.actors)
    if arguments.json:
        sys.stdout.write(json.dumps(tables) + "\n")
        return
    for name, rows in tables.items():
        sys.stdout.write(f"microseconds an item, {name.replace('_', ' ')}\n{table(rows)}")


if __name__ == "__main__":
    main()
