"""What Ray is asked to reserve for a seat, and what for the actor in it. Without Ray."""

from typing import Any

import pytest

from cluster.processes.placement import seat_of
from cluster.processes.reservations import seats as module
from cluster.processes.reservations.seats import SEAT_PREFIX, Seats


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []

    def make(bundles: list[dict[str, float]], **options: Any) -> dict[str, Any]:
        made.append({"bundles": bundles, **options})
        return made[-1]

    monkeypatch.setattr(module, "placement_group", make)
    monkeypatch.setattr(module, "remove_placement_group", lambda group: group.update(is_removed=True))
    return made


def test_an_actor_takes_all_of_a_seat_on_one_node(groups: list[dict[str, Any]]) -> None:
    options = Seats(print).options("large 0", seat_of(1, 2))
    strategy = options.pop("scheduling_strategy")
    assert options == {"num_cpus": 1.0, "num_gpus": 2.0}
    assert (strategy.placement_group, strategy.placement_group_bundle_index) == (groups[0], 0)
    assert groups == [{"bundles": [{"CPU": 1.0, "GPU": 2.0}], "strategy": "PACK", "name": f"{SEAT_PREFIX}1: large 0"}]


def test_of_a_seat_in_parts_the_devices_are_left_to_the_engines_workers(groups: list[dict[str, Any]]) -> None:
    """vLLM wants one bundle with one GPU for each worker, and takes the group of the actor that starts it."""
    options = Seats(print).options("large 0", seat_of(1, 4, num_parts=4))
    assert (options["num_cpus"], options["num_gpus"]) == (0.25, 0.0)
    assert groups[0]["bundles"] == [{"CPU": 0.25, "GPU": 1.0}] * 4


def test_who_needs_nothing_has_no_seat(groups: list[dict[str, Any]]) -> None:
    assert Seats(print).options("scorer x 0", seat_of(0)) == {"num_cpus": 0.0, "num_gpus": 0.0}
    assert groups == []


def test_a_seat_is_kept_for_whoever_has_its_name_until_it_is_given_back(groups: list[dict[str, Any]]) -> None:
    seats = Seats(print)
    first, again = (seats.options("small 0", seat_of(0.5, 1))["scheduling_strategy"].placement_group for _ in range(2))
    assert first is again
    seats.give_back("small 0")
    seats.give_back("small 0")  # nobody sits there
    assert seats.options("small 0", seat_of(0.5, 1))["scheduling_strategy"].placement_group is not first
    assert [group.get("is_removed", False) for group in groups] == [True, False]
    assert groups[0]["name"] != groups[1]["name"]  # Ray may still know the first
