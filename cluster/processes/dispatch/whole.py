"""A call that everybody must have answered, those that replace lost actors too."""

from collections.abc import Callable, Collection
from typing import Any, Protocol

from ray import ObjectRef


class Pool(Protocol):
    """Of actors, some of which may be on their way."""

    @property
    def names(self) -> list[str]: ...

    def __len__(self) -> int: ...

    def finished(self, refs: Collection[ObjectRef]) -> object: ...

    def broadcast(self, call: Callable[[Any], ObjectRef], *, about: str, deadline_s: float | None = None) -> object: ...


def ask_all(pool: Pool, call: Callable[[Any], ObjectRef], *, about: str, deadline_s: float | None = None) -> None:
    """As `ActorPool.broadcast`, once nobody is on its way any more; again, where somebody was lost meanwhile."""
    while True:
        while len(pool.names) > len(pool):
            pool.finished([])
        pool.broadcast(call, about=about, deadline_s=deadline_s)
        if len(pool.names) == len(pool):
            return
