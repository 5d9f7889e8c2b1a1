"""Counts of calls by actor, against counts that are made anew for each question."""

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.processes.dispatch.loads import Loads

NAMES = ("a", "b", "c")


@settings(deadline=None)  # beside other work an example may take long
@given(st.lists(st.tuples(st.sampled_from(("begin", "end", "add", "remove", "dispatch")), st.sampled_from(NAMES)), max_size=60))
def test_the_fewest_calls_are_found_after_whatever_happens(events: list[tuple[str, str]]) -> None:
    loads, expected = Loads(), dict[str, int]()
    for event, name in events:
        if event == "add" and name not in expected:
            loads.add(name)
            expected[name] = 0
        elif event == "remove" and name in expected:
            loads.remove(name)
            del expected[name]
        elif event == "begin" and name in expected:
            loads.begin(name)
            expected[name] += 1
        elif event == "end" and expected.get(name):
            loads.end(name)
            expected[name] -= 1
        elif event == "dispatch" and expected:
            chosen = loads.least_loaded()
            loads.begin(chosen)
            expected[chosen] += 1
        assert loads.by_name() == expected
        if expected:
            assert min(expected.values()) == loads[loads.least_loaded()]


def test_of_equally_loaded_ones_the_longest_so_is_next() -> None:
    loads = Loads()
    for name in NAMES:
        loads.add(name)
    chosen = []
    for _ in range(5):
        chosen.append(loads.least_loaded())
        loads.begin(chosen[-1])
    assert chosen == ["a", "b", "c", "a", "b"]
    loads.end("b")  # c has one call since before b came back to one
    assert loads.least_loaded() == "c"


def dispatched(loads: Loads, number: int) -> list[str]:
    chosen = []
    for _ in range(number):
        chosen.append(loads.least_loaded())
        loads.begin(chosen[-1])
    return chosen


def test_calls_are_shared_as_capacities_are() -> None:
    loads = Loads()
    for name, capacity in (("small", 16), ("large", 64), ("small too", 16)):
        loads.add(name, capacity)
    dispatched(loads, 96)
    assert loads.by_name() == {"small": 16, "large": 64, "small too": 16}
    loads.remove("large")
    assert dispatched(loads, 2) == ["small", "small too"]


def test_nobody_is_idle_while_there_is_work() -> None:
    loads = Loads()
    for name, capacity in (("small", 1), ("large", 100)):
        loads.add(name, capacity)
    assert dispatched(loads, 3) == ["large", "small", "large"]


def test_room_counts_by_capacity_and_an_idle_one_has_it() -> None:
    loads = Loads()
    for name, capacity in (("small", 2), ("large", 8)):
        loads.add(name, capacity)
    num_calls = 0
    while loads.has_room(0.25):
        loads.begin(loads.least_loaded())
        num_calls += 1
    assert (num_calls, loads.by_name()) == (3, {"small": 1, "large": 2})  # a quarter of 2, but one in any case, and of 8
