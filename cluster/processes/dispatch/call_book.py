"""Which calls a pool's actors have in flight, and which have ended for whom. Each call costs the same, whatever is in flight."""

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ray import ObjectRef

from cluster.processes.dispatch.loads import Loads, equal_capacity
from cluster.processes.watchdog import Pending

ActorT = TypeVar("ActorT")  # handle of a Ray actor


@dataclass(slots=True, kw_only=True)
class Call(Generic[ActorT]):
    """One call of a pool. Produced by its `start`, consumed by its `finished`."""

    name: str
    actor: ActorT  # the one that was asked; another may have its name by now
    owed: Pending
    deadline_s: float | None  # of this call; None is the supervision's
    caller: Hashable
    has_ended: bool = False
    answer: "Future[Any] | None" = None  # what it ended with; none where it was lost, taken back or abandoned
    is_lost: bool = False  # with an actor that hangs: its reference may never resolve
    is_taken_back: bool = False  # from an actor that leaves the pool


class CallBook(Generic[ActorT]):
    """The actors that take work, and all calls whose outcome nobody has taken. For one thread."""

    def __init__(self, actors: Mapping[str, ActorT], capacity_of: Callable[[str], int] = equal_capacity) -> None:
        """`capacity_of`: how much an actor of that name takes of the work, beside others."""
        self._capacity_of = capacity_of
        self.actors: dict[str, ActorT] = {}
        self.loads = Loads()
        self._calls: dict[ObjectRef, Call[ActorT]] = {}
        self._ended: defaultdict[Hashable, dict[ObjectRef, Call[ActorT]]] = defaultdict(
            dict
        )  # those of them that have, by caller
        for name, actor in actors.items():
            self.admit(name, actor)

    def admit(self, name: str, actor: ActorT) -> None:
        """An actor takes work from now on."""
        self.actors[name] = actor
        self.loads.add(name, self._capacity_of(name))

    def dismiss(self, name: str) -> ActorT:
        """An actor takes no more work; what it has in flight may still end."""
        self.loads.remove(name)
        return self.actors.pop(name)

    def begin(self, ref: ObjectRef, call: Call[ActorT]) -> None:
        """A call is in flight."""
        self._calls[ref] = call
        self.loads.begin(call.name)

    def end(self, ref: ObjectRef, answer: "Future[Any] | None" = None) -> None:
        """Its actor has no more to do with this call; its outcome waits for the caller. Nothing where it was abandoned."""
        call = self._calls.get(ref)
        if call is None or call.has_ended:
            return
        call.has_ended = True
        call.answer = answer
        self._ended[call.caller][ref] = call
        if self.actors.get(call.name) is call.actor:
            self.loads.end(call.name)

    def lose(self, actor: ActorT) -> int:
        """End all that an actor has in flight as lost; returns how many calls. Looks through all calls."""
        lost = [(ref, call) for ref, call in self._calls.items() if call.actor is actor and not call.has_ended]
        for ref, call in lost:
            call.is_lost = True
            self.end(ref)
        return len(lost)

    def take_back(self, actor: ActorT) -> None:
        """End all that an actor has in flight, for others to do. Looks through all calls."""
        for ref, call in list(self._calls.items()):
            if call.actor is actor and not call.has_ended:
                call.is_taken_back = True
                self.end(ref)

    def has_ended(self, refs: Collection[ObjectRef], caller: Hashable) -> bool:
        """Whether `take` has something."""
        return any(ref in refs for ref in self._ended.get(caller, ()))

    def take(self, refs: Collection[ObjectRef], caller: Hashable) -> list[tuple[ObjectRef, Call[ActorT]]]:
        """Those of the caller's `refs` that have ended, in that order; they are forgotten here."""
        taken = [(ref, call) for ref, call in self._ended.get(caller, {}).items() if ref in refs]
        for ref, _ in taken:
            self.forget(ref)
        return taken

    def forget(self, ref: ObjectRef) -> None:
        """Nobody will take the outcome of this call."""
        self.end(ref)
        call = self._calls.pop(ref, None)
        if call is not None:
            ended = self._ended[call.caller]
            del ended[ref]
            if not ended:
                del self._ended[call.caller]

    def pending(self) -> list[Pending]:
        """What is in flight. May be asked from any thread."""
        return [call.owed for call in list(self._calls.values()) if not call.has_ended]

    def own_deadlines_s(self) -> Mapping[str, float]:
        """The longest of those that came with a call in flight, by actor. Looks through all calls."""
        longest_s: dict[str, float] = {}
        for call in self._calls.values():
            if call.deadline_s is not None and not call.has_ended:
                longest_s[call.name] = max(longest_s.get(call.name, 0.0), call.deadline_s)
        return longest_s
