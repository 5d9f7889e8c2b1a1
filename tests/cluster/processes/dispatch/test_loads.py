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
            assert loads.least == min(expected.values()) == loads[loads.least_loaded()]


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
