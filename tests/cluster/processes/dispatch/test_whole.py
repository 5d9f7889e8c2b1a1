"""A call that everybody must have answered."""

from collections.abc import Callable, Collection
from typing import Any

from cluster.processes.dispatch.whole import ask_all


class Pool:
    """`lost`: for each broadcast, the actors that are lost in it; they come back one at each look."""

    def __init__(self, lost: list[list[str]], coming: list[str]) -> None:
        self.names = ["a", "b"]
        self._lost, self._coming = lost, coming
        self.seen: list[Any] = []

    def __len__(self) -> int:
        return len(self.names) - len(self._coming)

    def finished(self, refs: Collection[Any]) -> None:
        self.seen.append(f"{self._coming.pop()} comes")

    def broadcast(self, call: Callable[[Any], Any], *, about: str, deadline_s: float | None = None) -> None:
        self.seen.append((about, deadline_s))
        self._coming += self._lost.pop(0)


def test_who_is_on_the_way_is_waited_for_and_who_was_lost_is_asked_again() -> None:
    pool = Pool(lost=[["b"], []], coming=["a"])
    ask_all(pool, lambda actor: actor, about="sleep", deadline_s=3.0)
    assert pool.seen == ["a comes", ("sleep", 3.0), "b comes", ("sleep", 3.0)]
