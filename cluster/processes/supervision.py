"""How lost actors are noticed and replaced.

What counts is progress, not finished calls: an actor that works on one long call is well while its counter moves. The counter is
asked for beside the call, so an actor whose process stands still does not answer, and one whose engine stands still answers the
same number.
"""

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray import ObjectRef
from ray.exceptions import RayError

ActorT = TypeVar("ActorT")  # handle of a Ray actor

PROGRESS_GROUP = "progress"  # Ray's concurrency group in which an actor answers `progress` while it works

START_DEADLINE = "supervision.start_deadline_s"  # in words for people

LOOKS_PER_DEADLINE = 10  # progress is seen a tenth of a deadline late at most


def nothing_reserved(name: str) -> None:
    """For actors that have no place of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervision(Generic[ActorT]):
    """How lost actors are replaced. Produced by whoever starts the actors, consumed by `ActorPool`."""

    start: Callable[[str], ActorT]
    """A new actor in place of the one of that name."""
    admission: Callable[[ActorT], Generator[ObjectRef, Any, None]]
    """What a replacement must do before it gets work: yields calls, is sent their results, and ends when the actor may join."""
    progress: Callable[[ActorT], ObjectRef]
    """Asks for a number that changes whenever the actor has done a piece of its work. Answered beside a running call."""
    deadline_s: float
    """An actor that has answered once, has work, and makes no progress for so long is lost, even if its process lives."""
    start_deadline_s: float
    """One that has not answered its first call after so long, or as a replacement has not joined, is lost, too."""
    max_losses: int
    """Of one actor and its replacements, with no finished call in between; one more ends the run."""
    memory_advice: str
    """What makes such an actor smaller, in words for people whose machine runs out of memory."""
    note: Callable[[str], None]
    """One line to the people who watch."""
    give_back: Callable[[str], None] = nothing_reserved
    """What the actor of that name had is free: it has left the pool, and nobody comes in its place."""

    @property
    def look_s(self) -> float:
        """From one look at the actors that have work, and at those on their way, to the next."""
        return min(self.deadline_s, self.start_deadline_s) / LOOKS_PER_DEADLINE


class Pulse(Generic[ActorT]):
    """When an actor last made progress. Read and asked by the pool, about actors that have work."""

    def __init__(self, actor: ActorT, supervision: Supervision[ActorT]) -> None:
        self.actor = actor
        self._progress = supervision.progress
        self._last: Any = None  # the number of the last answer
        self._probe = self._progress(actor)  # what later answers are compared with
        self.moved_s = time.monotonic()

    def move(self) -> None:
        """The actor finished a call, or got work after it had none."""
        self.moved_s = time.monotonic()

    @property
    def is_heard(self) -> bool:
        """Whether it has answered a probe: then its process is up, and its constructor is done."""
        return self._last is not None

    def listen(self) -> None:
        """Take the answer of the last probe if it has come, and send the next one."""
        if ray.wait([self._probe], timeout=0)[0]:  # an actor that does not answer is asked no second time
            self._hear(self._probe)
            self._probe = self._progress(self.actor)

    def _hear(self, probe: ObjectRef) -> None:
        try:
            number = ray.get(probe)
        except RayError:
            return  # its calls will say what became of it
        if self._last is not None and number != self._last:
            self.move()
        self._last = number


def not_started(deadline_s: float, *, setting: str, is_up: bool = False) -> str:
    """Why something that did not come within its deadline is lost, in words for people.

    `setting`: what the deadline is called. `is_up`: its process has answered.
    """
    if is_up:
        return f"it has not started within {deadline_s:g} s: its process is up, and its first call does not end"
    return f"it has not started within {deadline_s:g} s: {loads_or_has_no_room()}; raise {setting} for a model that loads longer"


def loads_or_has_no_room() -> str:
    """What an actor may be at that does not answer yet, with what is free for it."""
    return f"it still loads its model, or no node has room for it ({free_resources()})"


def free_resources() -> str:
    """What is free in the cluster, in words for people."""
    available, resources = ray.available_resources(), ray.cluster_resources()
    free = ", ".join(f"{available.get(kind, 0):g} of {resources[kind]:g} {kind}s" for kind in ("CPU", "GPU") if kind in resources)
    return f"free in the cluster: {free}"
