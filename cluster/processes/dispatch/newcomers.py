"""Actors on their way into a pool: started, admitted step by step, told of where they are long in coming."""

import itertools
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Generic

import ray
from ray import ObjectRef
from ray.exceptions import RayError, RayTaskError

from cluster.errors import RaywardError
from cluster.processes.dispatch.arrivals import Arrival, Arrivals
from cluster.processes.supervision import ActorT, Supervision, loads_or_has_no_room
from cluster.processes.watchdog import Pending

LONG_START_S = 60.0  # before people are told what one may wait for


def resized(names: Sequence[str], number: int, name_of: Callable[[int], str]) -> list[str]:
    """So many names for a pool that has `names`: the first of them, or all with the first that are new. `name_of`: an index."""
    new = (name for index in itertools.count() if (name := name_of(index)) not in names)
    return [*names[:number], *itertools.islice(new, max(0, number - len(names)))]


@dataclass(slots=True, kw_only=True)
class Newcomer(Generic[ActorT]):
    """One of them. Produced by `Newcomers`, consumed by `ActorPool`."""

    name: str
    actor: ActorT
    admission: Generator[ObjectRef, Any, None]
    is_further: bool  # and not in the place of a lost one
    since_s: float
    is_told: bool = False  # that it is long in coming


class Newcomers(Generic[ActorT]):
    """Those of one pool. For one thread."""

    def __init__(self, supervision: Supervision[ActorT], arrivals: Arrivals) -> None:
        self._supervision = supervision
        self._arrivals = arrivals
        self._by_answer: dict[ObjectRef, Newcomer[ActorT]] = {}  # the answer that each of them owes

    def __len__(self) -> int:
        return len(self._by_answer)

    def __contains__(self, ref: ObjectRef) -> bool:
        return ref in self._by_answer

    @property
    def names(self) -> list[str]:
        return [newcomer.name for newcomer in self._by_answer.values()]

    def pending(self) -> list[Pending]:
        """Who is to come. May be asked from any thread."""
        return [
            Pending(whom=f"the new {newcomer.name}", what="its start", since_s=newcomer.since_s)
            for newcomer in list(self._by_answer.values())
        ]

    def start(self, name: str, *, is_further: bool) -> None:
        """One more. `is_further`: it takes nobody's place."""
        actor = self._supervision.start(name)
        admission = self._supervision.admission(actor)
        newcomer = Newcomer(name=name, actor=actor, admission=admission, is_further=is_further, since_s=time.monotonic())
        self._expect(newcomer, next(admission))

    def proceed(self, arrival: Arrival) -> tuple[Newcomer[ActorT], RayError | RaywardError | None] | None:
        """Take one more answer. None where its actor owes another; else the newcomer, with what keeps it from joining.

        An error of ours is the admission's to judge.
        """
        newcomer = self._by_answer.pop(arrival.ref)
        try:
            try:
                answer = arrival.answer.result()
            except RayTaskError as error:
                if not isinstance(error.cause, RaywardError):
                    raise
                self._expect(newcomer, newcomer.admission.throw(error.cause))
            else:
                self._expect(newcomer, newcomer.admission.send(answer))
        except StopIteration:
            return newcomer, None
        except (RayError, RaywardError) as error:
            return newcomer, error
        return None

    def take_late(self) -> list[Newcomer[ActorT]]:
        """Those whose deadline is over. Of others that are long in coming people are told once: their node may not exist yet."""
        now_s = time.monotonic()
        late = {ref: each for ref, each in self._by_answer.items() if now_s - each.since_s > self._supervision.start_deadline_s}
        for ref in late:
            del self._by_answer[ref]
        for newcomer in self._by_answer.values():
            if not newcomer.is_told and now_s - newcomer.since_s > LONG_START_S:
                newcomer.is_told = True
                waited = f"{newcomer.name} has not come after {now_s - newcomer.since_s:.0f} s"
                self._supervision.note(f"{waited}: {loads_or_has_no_room()}")
        return list(late.values())

    def next_look_s(self) -> float:
        """Seconds until `take_late` should be asked again. There must be one on its way."""
        oldest_s = min(newcomer.since_s for newcomer in self._by_answer.values())
        return min(oldest_s + self._supervision.start_deadline_s - time.monotonic(), self._supervision.look_s)

    def end(self, name: str | None = None) -> bool:
        """End the one of that name, or all of them; whether there was one."""
        ended = [ref for ref, newcomer in self._by_answer.items() if name in (None, newcomer.name)]
        for ref in ended:
            ray.kill(self._by_answer.pop(ref).actor)
        return bool(ended)

    def _expect(self, newcomer: Newcomer[ActorT], answer: ObjectRef) -> None:
        self._by_answer[answer] = newcomer
        self._arrivals.expect(answer)
