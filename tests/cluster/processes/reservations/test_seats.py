"""Seats on nodes of one CPU each, several raylets of this machine: all or nothing, for successors too, and reserved again."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import ray

from cluster.errors import RaywardError
from cluster.processes.placement import seat_of
from cluster.processes.reservations import seats as module
from cluster.processes.reservations.seats import Seats
from tests.ray_nodes import TwoNodes, two_nodes

__all__ = ["two_nodes"]  # a fixture


pytestmark = pytest.mark.cold_start
ONE_CPU = seat_of(1)
LONG_S = 60.0


class Sitter:
    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()


def sits(seats: Seats, name: str) -> Any:
    return ray.remote(Sitter).options(**seats.options(name, ONE_CPU)).remote()


def free_cpus() -> float:
    return ray.available_resources().get("CPU", 0.0)


def until(condition: Callable[[], bool]) -> None:
    """Ray gives resources back when it has time for it."""
    ends_s = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < ends_s
        time.sleep(0.1)


def lost_node_is_known(two_nodes: TwoNodes) -> bool:
    return {node["NodeID"]: node["Alive"] for node in ray.nodes()}[two_nodes.ids[1]] is False


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds, pauses and notes of a moment."""
    for name in ("ROUND_S", "MAX_PAUSE_S", "FIRST_NOTE_S"):
        monkeypatch.setattr(module, name, 0.2)


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def seats(two_nodes: TwoNodes, notes: list[str]) -> Seats:
    return Seats(notes.append)


def test_a_successor_finds_the_seat_free_whoever_else_waits(seats: Seats) -> None:
    seats.reserve({"a": ONE_CPU, "b": ONE_CPU, "idle": seat_of(0)}, deadline_s=LONG_S)
    first, other = sits(seats, "a"), sits(seats, "b")
    nodes = ray.get([first.node.remote(), other.node.remote()])
    assert len(set(nodes)) == 2
    stranger = ray.remote(Sitter).options(num_cpus=1).remote()
    waiting = stranger.node.remote()
    ray.kill(first)
    assert ray.get(sits(seats, "a").node.remote(), timeout=LONG_S) == nodes[0]
    assert not ray.wait([waiting], timeout=0)[0]
    seats.give_back("b")  # which ends who sits there
    assert ray.get(waiting, timeout=LONG_S) == nodes[1]


def test_who_waits_for_room_holds_nothing_and_says_so(seats: Seats, notes: list[str], hurried: None) -> None:
    holder = Seats(print)
    holder.reserve({"other": ONE_CPU}, deadline_s=LONG_S)
    with pytest.raises(RaywardError, match=r"had no room within 1 s: none for (a|b|a, b) \(free in the cluster: \d of 2 CPUs"):
        seats.reserve({"a": ONE_CPU, "b": ONE_CPU}, deadline_s=1.0)
    until(lambda: free_cpus() == 1)
    (note,) = notes  # told again after a minute only
    assert note.startswith("waiting for room: none for ")
    assert "and nothing starts before that (free in the cluster: " in note


def test_who_waits_gets_all_once_there_is_room(two_nodes: TwoNodes, hurried: None) -> None:
    holder = Seats(print)
    holder.reserve({"other": ONE_CPU}, deadline_s=LONG_S)
    seats = Seats(lambda note: holder.close())
    seats.reserve({"a": ONE_CPU, "b": ONE_CPU}, deadline_s=LONG_S)
    until(lambda: free_cpus() == 0)
    seats.close()
    until(lambda: free_cpus() == 2)


def test_parts_may_be_on_several_nodes_and_a_whole_one_may_not(seats: Seats, hurried: None) -> None:
    seats.reserve({"in parts": seat_of(2, num_parts=2)}, deadline_s=LONG_S)
    assert ray.get(sits(seats, "in parts").node.remote(), timeout=LONG_S)  # in the first part
    seats.close()
    with pytest.raises(RaywardError, match="had no room"):
        seats.reserve({"whole": seat_of(2)}, deadline_s=1.0)


def test_a_seat_of_a_lost_node_is_reserved_again_when_another_joins(two_nodes: TwoNodes, seats: Seats) -> None:
    seats.reserve({"a": ONE_CPU, "b": ONE_CPU}, deadline_s=LONG_S)
    nodes = {name: ray.get(sits(seats, name).node.remote()) for name in ("a", "b")}
    [lost] = [name for name, node in nodes.items() if node == two_nodes.ids[1]]
    two_nodes.cluster.remove_node(two_nodes.second, allow_graceful=False)
    joined = two_nodes.cluster.add_node(num_cpus=1)
    until(lambda: lost_node_is_known(two_nodes))  # who is started before that is lost once more
    assert ray.get(sits(seats, lost).node.remote(), timeout=LONG_S) == joined.node_id
