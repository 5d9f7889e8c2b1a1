"""A pool of like Ray actors: least-loaded dispatch, results as they finish, broadcast.

A call is a function of the actor handle that returns the reference, for example `lambda actor: actor.ready.remote()`, so that
remote methods are named in code and never as strings.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import ray
from ray import ObjectRef
from ray.exceptions import RayActorError, RayTaskError

from cluster.errors import ConfigError, RaywardError

ActorT = TypeVar("ActorT")  # handle of a Ray actor
ItemT = TypeVar("ItemT")


class ActorPool(Generic[ActorT]):
    """Actors by name, with the calls that each of them has in flight. For one thread of the driver."""

    def __init__(self, actors: Mapping[str, ActorT]) -> None:
        if not actors:
            raise ConfigError("an actor pool needs at least one actor; set num_replicas to 1 or more")
        self._actors = dict(actors)
        self._in_flight: dict[ObjectRef, str] = {}

    def __len__(self) -> int:
        return len(self._actors)

    @property
    def actors(self) -> Mapping[str, ActorT]:
        return self._actors

    def loads(self) -> dict[str, int]:
        """Calls in flight, by actor name."""
        counts = Counter(self._in_flight.values())
        return {name: counts[name] for name in self._actors}

    def map_unordered(
        self, call: Callable[[ActorT, ItemT], ObjectRef], items: Iterable[ItemT], *, max_in_flight: int
    ) -> Iterator[tuple[ItemT, Any]]:
        """Yield (item, result) as results arrive; each item goes to the actor with the fewest calls in flight.

        No actor gets more than `max_in_flight` calls at a time, so that a fast one takes more items than a slow one. The first
        failure is raised and ends the iteration; what is still running then, or when the caller stops early, is cancelled.
        """
        waiting = deque(items)
        running: dict[ObjectRef, ItemT] = {}
        try:
            while waiting or running:
                # With nothing of its own running a map starts one call in any case: the pool's room may be taken by another map.
                while waiting and (not running or min(self.loads().values()) < max_in_flight):
                    item = waiting.popleft()
                    running[self._start(self._least_loaded(), lambda actor, item=item: call(actor, item))] = item  # type: ignore[misc]
                finished, _ = ray.wait(list(running), num_returns=1)
                for ref in finished:
                    # A supervisor that replaces a lost actor puts the item back into `waiting` here.
                    yield running.pop(ref), self._result(self._in_flight.pop(ref), ref)
        finally:
            for ref in running:
                self._in_flight.pop(ref, None)
                ray.cancel(ref)

    def broadcast(self, call: Callable[[ActorT], ObjectRef]) -> dict[str, Any]:
        """Call every actor, wait for all, return results by actor name. The first failure, in order of names, is raised."""
        refs = {name: self._start(name, call) for name in self._actors}
        ray.wait(list(refs.values()), num_returns=len(refs))
        for ref in refs.values():
            del self._in_flight[ref]
        return {name: self._result(name, ref) for name, ref in refs.items()}

    def _least_loaded(self) -> str:
        loads = self.loads()
        return min(loads, key=loads.__getitem__)

    def _start(self, name: str, call: Callable[[ActorT], ObjectRef]) -> ObjectRef:
        ref = call(self._actors[name])
        self._in_flight[ref] = name
        return ref

    @staticmethod
    def _result(name: str, ref: ObjectRef) -> Any:
        try:
            return ray.get(ref)
        except RayActorError as error:
            raise RaywardError(f"actor {name!r} is lost: {error}") from error
        except RayTaskError as error:
            if isinstance(error.cause, RaywardError):
                raise error.cause from error
            raise RaywardError(f"actor {name!r} failed: {error.cause!r}") from error
