"""A pool of like Ray actors: least-loaded dispatch, results as they finish, broadcast, and the lost replaced.

A call is a function of the actor handle that returns the reference, for example `lambda actor: actor.ready.remote()`, so that
remote methods are named in code and never as strings.

An actor is lost when its process or its engine has died, or when it has work and makes no progress for too long. With a
`Supervision` it is replaced; what it had in flight ends as `LOST`, for its caller to ask another one. The replacement takes work
only after it was admitted. A call that failed for a passing reason ends as `AGAIN`, and its actor stays.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

import ray
from ray import ObjectRef
from ray.exceptions import RayError, RayTaskError

from cluster.errors import ConfigError, RaywardError
from cluster.processes.losses import Outcome, is_out_of_memory, outcome_of, reason_of
from cluster.processes.supervision import START_DEADLINE, ActorT, Pulse, Supervision, not_started
from cluster.processes.watchdog import Pending

ItemT = TypeVar("ItemT")

LOST = object()
"""What a call ended with whose actor was lost."""
AGAIN = object()
"""What a call ended with that failed for a passing reason: its actor is well, and it is to be made again."""
MAX_BLIPS = 20  # moments in a row in which an actor is out of reach, before it counts as lost
BLIP_PAUSE_S = 0.5  # before calls are made again; failures within it are one moment


@dataclass(frozen=True, slots=True)
class _Call(Generic[ActorT]):
    name: str
    actor: ActorT  # the one that was asked; another may have its name by now
    about: str
    since_s: float
    deadline_s: float | None  # of this call; None is the supervision's


@dataclass(slots=True)
class _Joining(Generic[ActorT]):
    name: str
    actor: ActorT
    admission: Generator[ObjectRef, Any, None]
    since_s: float


class ActorPool(Generic[ActorT]):
    """Actors by name, with the calls that each of them has in flight. For one thread of the driver."""

    def __init__(self, actors: Mapping[str, ActorT], supervision: Supervision[ActorT] | None = None) -> None:
        if not actors:
            raise ConfigError("an actor pool needs at least one actor; set num_replicas to 1 or more")
        self._actors = dict(actors)
        self._supervision = supervision
        self._in_flight: dict[ObjectRef, _Call[ActorT]] = {}
        self._lost_calls: set[ObjectRef] = set()  # of actors that hang: these references may never resolve
        self._joining: dict[ObjectRef, _Joining[ActorT]] = {}
        self._pulses: dict[str, Pulse[ActorT]] = {}
        self._has_answered: set[str] = set()  # before, it may still be loading: the deadline of a start holds
        self._losses: Counter[str] = Counter()  # since the last finished call
        self._blips: Counter[str] = Counter()  # likewise
        self._blip_s: dict[str, float] = {}  # when the last of them was counted
        self.num_lost = 0  # since the start

    def __len__(self) -> int:
        return len(self._actors)

    @property
    def actors(self) -> Mapping[str, ActorT]:
        """Those that take work; one that is lost is missing until its replacement is admitted."""
        return self._actors

    def loads(self) -> dict[str, int]:
        """Calls in flight, by actor name."""
        counts = Counter(call.name for call in self._in_flight.values() if self._actors.get(call.name) is call.actor)
        return {name: counts[name] for name in self._actors}

    def pending(self) -> list[Pending]:
        """What is in flight, and who is to join. May be asked from any thread."""
        calls = [Pending(whom=call.name, what=call.about, since_s=call.since_s) for call in list(self._in_flight.values())]
        joining = [
            Pending(whom=f"the new {joining.name}", what="its start", since_s=joining.since_s)
            for joining in list(self._joining.values())
        ]
        return calls + joining

    @overload
    def map_unordered(
        self,
        call: Callable[[ActorT, ItemT], ObjectRef],
        items: Iterable[ItemT],
        *,
        max_in_flight: int,
        about: Callable[[ItemT], str] = str,
    ) -> Iterator[tuple[ItemT, int, Any]]: ...

    @overload
    def map_unordered(
        self,
        call: Callable[[ActorT, ItemT], ObjectRef],
        items: Iterable[ItemT],
        *,
        max_in_flight: int,
        about: Callable[[ItemT], str] = str,
        patience_s: float,
    ) -> Iterator[tuple[ItemT, int, Any] | None]: ...

    def map_unordered(
        self,
        call: Callable[[ActorT, ItemT], ObjectRef],
        items: Iterable[ItemT],
        *,
        max_in_flight: int,
        about: Callable[[ItemT], str] = str,
        patience_s: float | None = None,
    ) -> Iterator[tuple[ItemT, int, Any] | None]:
        """Yield (item, attempt, result) as results arrive; each item goes to the actor with the fewest calls in flight.

        `about`: an item's name for people. No actor gets more than `max_in_flight` calls at a time, so that a fast one takes more
        items than a slow one. Items of a lost actor go to another. The first other failure is raised and ends the iteration; what
        is still running then, or when the caller stops early, is cancelled. None is yielded where nothing has arrived for
        `patience_s`, and nothing may have: the caller can turn to something else in between, also to another map.
        """
        waiting = deque((item, 1) for item in items)
        running: dict[ObjectRef, tuple[ItemT, int]] = {}
        try:
            while waiting or running:
                # With nothing of its own running a map starts one call in any case: the pool's room may be taken by another map.
                while waiting and self._actors and (not running or min(self.loads().values()) < max_in_flight):
                    item, attempt = waiting.popleft()
                    ref = self.start(self._least_loaded(), lambda actor, item=item: call(actor, item), about=about(item))  # type: ignore[misc]
                    running[ref] = item, attempt
                ended = self.finished(running, timeout_s=patience_s)
                if patience_s is not None and not ended:
                    yield None
                for ref, result in ended:
                    item, attempt = running.pop(ref)
                    if result is AGAIN:
                        waiting.appendleft((item, attempt))
                    elif result is LOST:
                        self._check_attempts(about(item), attempt)
                        waiting.appendleft((item, attempt + 1))
                    elif isinstance(result, RaywardError):
                        raise result
                    else:
                        yield item, attempt, result
        finally:
            self.abandon(running)

    def broadcast(
        self, call: Callable[[ActorT], ObjectRef], *, about: str = "an answer", deadline_s: float | None = None
    ) -> dict[str, Any]:
        """Call every actor, wait for all, return results by actor name; lost ones are missing. The first failure is raised.

        `deadline_s`: for this call, in place of the supervision's.
        """
        asked = dict(self._actors)
        running = {self.start(name, call, about=about, deadline_s=deadline_s): name for name in asked}
        results: dict[str, Any] = {}
        while running:
            for ref, result in self.finished(running):
                name = running.pop(ref)
                if result is not LOST and result is not AGAIN:
                    results[name] = result
                elif self._actors.get(name) is asked[name]:
                    running[self.start(name, call, about=about, deadline_s=deadline_s)] = name
        found = {name: results[name] for name in asked if name in results}
        for result in found.values():
            if isinstance(result, RaywardError):
                raise result
        return found

    def start(
        self, name: str, call: Callable[[ActorT], ObjectRef], *, about: str = "an answer", deadline_s: float | None = None
    ) -> ObjectRef:
        """Begin one call; `finished` tells how it ended. `about`: what is asked for, in words for people."""
        actor = self._actors[name]
        if self._supervision is not None and (not self.loads()[name] or self._pulses[name].actor is not actor):
            self._pulses[name] = Pulse(actor, self._supervision)
        ref = call(actor)
        self._in_flight[ref] = _Call(name, actor, about, time.monotonic(), deadline_s)
        return ref

    def abandon(self, refs: Iterable[ObjectRef]) -> None:
        """Nobody waits for these calls any more; those that have not begun never will."""
        for ref in refs:
            self._in_flight.pop(ref, None)
            self._lost_calls.discard(ref)
            ray.cancel(ref)

    def wait_for_an_actor(self) -> None:
        """Return once one actor takes work. Raises where none is left and none is on its way."""
        while not self._actors:
            if not self._joining:
                raise RaywardError("every actor is lost, and none is on its way")
            self.finished([])

    def shut_down(self, call: Callable[[ActorT], ObjectRef], *, timeout_s: float) -> None:
        """Call every actor for the last time, unsupervised, and wait for all of them together for so long at most.

        What does not answer is left to the end of Ray; replacements on their way are ended. Never raises for a lost actor: the
        error that ends a run says more.
        """
        self._supervision = None
        for joining in self._joining.values():
            ray.kill(joining.actor)
        self._joining.clear()
        refs = [call(actor) for actor in self._actors.values()]
        ray.wait(refs, num_returns=len(refs), timeout=timeout_s)

    def finished(self, refs: Collection[ObjectRef], *, timeout_s: float | None = None) -> list[tuple[ObjectRef, Any]]:
        """Calls of `refs` that have ended, with their results, `LOST`, `AGAIN`, or the error of a failure that is no loss.

        Waits up to `timeout_s` (None: for ever) for one of them to end, or for a replacement to join the pool.
        """
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            num_actors = len(self._actors)
            ready = self._wait(refs, until_s)
            for ref in [ref for ref in ready if ref in self._joining]:
                self._admit(ref)
            ended = [(ref, self._result(ref)) for ref in ready if ref in self._in_flight]
            if any(result is AGAIN for _, result in ended):
                time.sleep(BLIP_PAUSE_S)
            self._lose_those_that_hang()
            for ref in self._lost_calls.intersection(refs):
                self._lost_calls.remove(ref)
                ended.append((ref, LOST))
            has_joined, is_late = len(self._actors) > num_actors, until_s is not None and time.monotonic() >= until_s
            if ended or has_joined or is_late or not (refs or self._joining):
                return ended

    def _wait(self, refs: Collection[ObjectRef], until_s: float | None) -> list[ObjectRef]:
        """Those that are ready, after a wait for the first, for the next deadline at most."""
        lost = self._lost_calls.intersection(refs)
        awaited = [*(ref for ref in refs if ref not in lost), *self._joining]
        now_s = time.monotonic()
        ends_s = [until_s] if until_s is not None else []
        if self._supervision is not None:
            ends_s += [min(self._ends_s(name), self._pulses[name].next_look_s) for name in self._those_at_work()]
            ends_s += [joining.since_s + self._supervision.start_deadline_s for joining in self._joining.values()]
        if lost or not awaited:
            ends_s.append(now_s)
        timeout_s = max(0.0, min(ends_s) - now_s) if ends_s else None
        if not awaited:
            return []
        ready, _ = ray.wait(awaited, timeout=timeout_s)
        if ready:  # and whatever else is
            ready, _ = ray.wait(awaited, num_returns=len(awaited), timeout=0)
        return ready

    def _check_attempts(self, item: str, attempt: int) -> None:
        """An item that takes every actor with it would otherwise be handed on for ever, while others finish in between."""
        assert self._supervision is not None, "without one a loss is an error"
        if attempt > self._supervision.max_losses:
            raise RaywardError(f"{attempt} actors were lost while they worked on {item}")

    def _least_loaded(self) -> str:
        loads = self.loads()
        return min(loads, key=loads.__getitem__)

    def _result(self, ref: ObjectRef) -> Any:
        call = self._in_flight.pop(ref)
        try:
            result = ray.get(ref)
        except RayError as error:
            return self._failed(call, error)
        if call.name in self._pulses:
            self._pulses[call.name].move()
        self._has_answered.add(call.name)
        self._losses[call.name] = self._blips[call.name] = 0
        return result

    def _failed(self, call: _Call[ActorT], error: RayError) -> object:
        """`AGAIN`, or `LOST` with a replacement on its way, or an error where asking again is of no use."""
        outcome = outcome_of(error)
        if outcome is Outcome.AGAIN and self._supervision is not None:
            now_s = time.monotonic()
            if now_s - self._blip_s.get(call.name, -math.inf) >= BLIP_PAUSE_S:
                self._blip_s[call.name] = now_s
                self._blips[call.name] += 1
            if self._blips[call.name] <= MAX_BLIPS:
                return AGAIN
        if outcome is Outcome.FAILED or self._supervision is None:
            cause = error.cause if isinstance(error, RayTaskError) else None
            return cause if isinstance(cause, RaywardError) else _failure(call.name, error)
        if self._actors.get(call.name) is call.actor:
            self._replace(call.name, self._why_lost(error))
        return LOST

    def _those_at_work(self) -> list[str]:
        """Actors of whom an answer can be expected."""
        return [name for name, load in self.loads().items() if load]

    def _ends_s(self, name: str) -> float:
        """When an actor at work counts as lost, unless it makes progress before."""
        assert self._supervision is not None, "without one there is no deadline"
        own = [call.deadline_s for call in self._in_flight.values() if call.name == name and call.deadline_s is not None]
        supervision = self._supervision
        deadline_s = supervision.deadline_s if name in self._has_answered else supervision.start_deadline_s
        return self._pulses[name].moved_s + max([deadline_s, *own])

    def _lose_those_that_hang(self) -> None:
        if self._supervision is None:
            return
        for name in self._those_at_work():
            self._pulses[name].listen()
            if time.monotonic() > self._ends_s(name):
                actor = self._actors[name]
                hanging = {ref for ref, call in self._in_flight.items() if call.actor is actor}
                for ref in hanging:
                    del self._in_flight[ref]
                self._lost_calls |= hanging
                self._replace(name, self._why_it_hangs(name, len(hanging)))
        start_deadline_s = self._supervision.start_deadline_s
        for ref, joining in list(self._joining.items()):
            if time.monotonic() - joining.since_s > start_deadline_s:
                del self._joining[ref]
                self._replace_joining(joining, not_started(start_deadline_s, setting=START_DEADLINE))

    def _why_lost(self, error: RayError | RaywardError) -> str:
        assert self._supervision is not None, "without one a loss is an error"
        advice = f"; {self._supervision.memory_advice}" if is_out_of_memory(error) else ""
        return reason_of(error) + advice

    def _why_it_hangs(self, name: str, num_calls: int) -> str:
        assert self._supervision is not None, "without one there is no deadline"
        pulse = self._pulses[name]
        if name not in self._has_answered:
            return not_started(self._supervision.start_deadline_s, setting=START_DEADLINE, is_up=pulse.is_heard)
        return f"{num_calls} calls in flight, and no progress for {time.monotonic() - pulse.moved_s:.0f} s"

    def _replace(self, name: str, reason: str) -> None:
        assert self._supervision is not None, "the caller knows"
        ray.kill(self._actors.pop(name))  # it may still run, and its successor needs its place
        self.num_lost += 1
        self._losses[name] += 1
        if self._losses[name] > self._supervision.max_losses:
            raise RaywardError(f"{name} was lost {self._losses[name]} times in a row, the last time because: {reason}")
        self._supervision.note(f"{name} is lost ({reason}); a replacement is starting")
        actor = self._supervision.start(name)
        admission = self._supervision.admission(actor)
        self._joining[next(admission)] = _Joining(name, actor, admission, time.monotonic())

    def _admit(self, ref: ObjectRef) -> None:
        """One more answer of a replacement; after the last it takes work. An error of ours is the admission's to judge."""
        assert self._supervision is not None, "only a supervised pool has replacements"
        joining = self._joining.pop(ref)
        try:
            try:
                answer = ray.get(ref)
            except RayTaskError as error:
                if not isinstance(error.cause, RaywardError):
                    raise
                following = joining.admission.throw(error.cause)
            else:
                following = joining.admission.send(answer)
            self._joining[following] = joining
        except StopIteration:
            self._actors[joining.name] = joining.actor
            self._has_answered.add(joining.name)
            self._supervision.note(f"{joining.name} is back")
        except (RayError, RaywardError) as error:
            self._replace_joining(joining, self._why_lost(error))

    def _replace_joining(self, joining: _Joining[ActorT], reason: str) -> None:
        self._actors[joining.name] = joining.actor
        self._replace(joining.name, reason)


def _failure(name: str, error: RayError) -> RaywardError:
    verb = "failed" if isinstance(error, RayTaskError) else "is lost"
    failure = RaywardError(f"actor {name!r} {verb}: {reason_of(error)}")
    failure.__cause__ = error
    return failure
