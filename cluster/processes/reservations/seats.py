"""Seats: what the cluster keeps for one actor each, so that it finds its devices free, and so does whoever replaces it.

A seat is a placement group of Ray. One group for a whole run would reserve all or nothing. But a group neither grows nor shrinks,
and pools do both; a group that is removed ends every actor in it; and its strategy holds for all of its bundles, where an engine
wants its devices on one node, and not all engines on the same. So each actor has its own, and `reserve` gives what one group
would: nothing starts before all is there, and a run that waits for room gives back what it has got, again and again.

If a node is lost, Ray reserves the seats that were there elsewhere, as soon as a node has room; a replacement waits for that.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.errors import RaywardError
from cluster.processes.placement import Seat
from cluster.processes.supervision import free_resources

SEAT_PREFIX: Final = "rayward seat "  # of the group's name, which tells it from those that others of the job make
ROUND_S = 30.0  # for which a run that waits keeps what it has got
MAX_PAUSE_S = 5.0  # before it tries again; at random, so that of two runs one gets all
FIRST_NOTE_S, NOTE_S = 5.0, 60.0  # before people are told what the run waits for, and from one time to the next
MAX_SHOWN = 3
NONE_TAKEN: Final[Mapping[str, PlacementGroup]] = {}


class Seats:
    """Those of one run, by the names of actors. For one thread of the driver."""

    def __init__(self, note: Callable[[str], None], taken: Mapping[str, PlacementGroup] = NONE_TAKEN) -> None:
        """`note`: told what a run waits for. `taken`: those that the driver has `taken` for a process of its own that starts
        actors; those that such a process takes itself would outlive it, for Ray keeps them until the job ends."""
        self._note = note
        self._groups = dict(taken)
        self._num_made = 0

    @property
    def taken(self) -> Mapping[str, PlacementGroup]:
        """By the names of actors; none for a seat of nothing."""
        return dict(self._groups)

    def reserve(self, seats: Mapping[str, Seat], *, deadline_s: float) -> None:
        """Take all of `seats`, the largest first; returns once they are there. Raises `RaywardError` after `deadline_s`.

        A seat of several bundles may be spread over nodes. One of nothing needs no place.
        """
        started_s = time.monotonic()
        told_s = started_s + FIRST_NOTE_S - NOTE_S
        while True:
            for name in sorted(seats, key=lambda name: _size(seats[name]), reverse=True):
                self._take(name, seats[name])
            round_ends_s = min(time.monotonic() + ROUND_S, started_s + deadline_s)
            while missing := self._missing(until_s=min(round_ends_s, told_s + NOTE_S)):
                now_s = time.monotonic()
                if now_s >= told_s + NOTE_S:
                    told_s = now_s
                    self._note(f"waiting for room: {_shown(missing)}, and nothing starts before that ({free_resources()})")
                if now_s >= round_ends_s:
                    break
            else:
                return
            self.close()
            if time.monotonic() >= started_s + deadline_s:
                raise RaywardError(
                    f"the cluster had no room within {deadline_s:g} s: {_shown(missing)} ({free_resources()}); `rayward plan` "
                    "shows what each role takes; raise supervision.start_deadline_s, or wait_for_nodes_s on a cluster that grows"
                )
            time.sleep(random.uniform(0, MAX_PAUSE_S))

    def options(self, name: str, seat: Seat) -> dict[str, Any]:
        """Of Ray, for the actor of that name. Its seat is taken now if it was not reserved: then the actor waits for it."""
        self._take(name, seat)
        group, (own, *others) = self._groups.get(name), seat
        options: dict[str, Any] = {"num_cpus": own.get("CPU", 0.0), "num_gpus": 0.0 if others else own.get("GPU", 0.0)}
        if group is not None:
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
        return options

    def give_back(self, name: str) -> None:
        """The actor of that name has ended, and nobody comes in its place."""
        group = self._groups.pop(name, None)
        if group is not None:
            remove_placement_group(group)

    def close(self) -> None:
        """Give back all of them."""
        for name in list(self._groups):
            self.give_back(name)

    def _take(self, name: str, seat: Seat) -> None:
        bundles = [taken for bundle in seat if (taken := {kind: number for kind, number in bundle.items() if number})]
        if name in self._groups or not bundles:
            return
        self._num_made += 1  # the name of a group that was given back may still be in use
        self._groups[name] = placement_group(bundles, strategy="PACK", name=f"{SEAT_PREFIX}{self._num_made}: {name}")

    def _missing(self, *, until_s: float) -> list[str]:
        """Names of the seats that are not there yet; waits for them."""
        ready = {group.ready(): name for name, group in self._groups.items()}
        if not ready:
            return []
        timeout_s = max(0.0, until_s - time.monotonic())
        _, missing = ray.wait(list(ready), num_returns=len(ready), timeout=timeout_s, fetch_local=False)
        return [ready[ref] for ref in missing]


def _size(seat: Seat) -> tuple[float, float]:
    """To sort by: what is large finds no place among what is small."""
    return max(bundle.get("GPU", 0.0) for bundle in seat), max(bundle.get("CPU", 0.0) for bundle in seat)


def _shown(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MAX_SHOWN])
    return f"none for {shown}" if len(names) <= MAX_SHOWN else f"none for {shown} and {len(names) - MAX_SHOWN} more"
