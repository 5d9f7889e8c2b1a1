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
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar, cast

import ray
from ray import ObjectRef
from ray.exceptions import RayError, RayTaskError

from cluster.errors import ConfigError, RaywardError
from cluster.processes.dispatch.arrivals import Arrivals
from cluster.processes.dispatch.call_book import Call, CallBook
from cluster.processes.dispatch.loads import equal_capacity
from cluster.processes.dispatch.newcomers import Newcomer, Newcomers
from cluster.processes.losses import Outcome, failure_of, is_out_of_memory, outcome_of, reason_of
from cluster.processes.supervision import START_DEADLINE, ActorT, Pulse, Supervision, not_started
from cluster.processes.watchdog import Pending

ItemT = TypeVar("ItemT")

END = object()  # of the items of a map
LOST = object()
"""What a call ended with whose actor was lost."""
AGAIN = object()
"""What a call ended with that failed for a passing reason: its actor is well, and it is to be made again."""
MAX_BLIPS = 20  # moments in a row in which an actor is out of reach, before it counts as lost
BLIP_PAUSE_S = 0.5  # before calls are made again; failures within it are one moment


class ActorPool(Generic[ActorT]):
    """Actors by name, with the calls that each of them has in flight. For one thread of the driver."""

    def __init__(
        self,
        actors: Mapping[str, ActorT],
        supervision: Supervision[ActorT] | None = None,
        capacity_of: Callable[[str], int] = equal_capacity,
    ) -> None:
        """`capacity_of`: an actor's, by its name. One of twice another's gets twice the items of a map at a time."""
        if not actors:
            raise ConfigError("an actor pool needs at least one actor; set num_replicas to 1 or more")
        self._supervision = supervision
        self._calls = CallBook(actors, capacity_of)
        self._arrivals = Arrivals()
        self._newcomers = None if supervision is None else Newcomers(supervision, self._arrivals)
        self._pulses: dict[str, Pulse[ActorT]] = {}
        self._next_look_s = math.inf  # at actors that have work, and at those that are to join
        self._has_answered: set[str] = set()  # before, it may still be loading: the deadline of a start holds
        self._losses: Counter[str] = Counter()  # since the last finished call
        self._blips: Counter[str] = Counter()  # likewise
        self._blip_s: dict[str, float] = {}  # when the last of them was counted
        self.num_lost = 0  # since the start

    def __len__(self) -> int:
        return len(self._calls.actors)

    @property
    def actors(self) -> Mapping[str, ActorT]:
        """Those that take work; one that is lost is missing until its replacement is admitted."""
        return self._calls.actors

    @property
    def names(self) -> list[str]:
        """Of those that take work, and of those that are on their way."""
        return [*self.actors, *(self._newcomers.names if self._newcomers else ())]

    def resize(self, names: Collection[str]) -> None:
        """Grow or shrink to the actors of these `names`, those that are on their way among them; see `resized`.

        A further one takes work once it is admitted; it is no loss if it never comes. What others have in flight ends as `AGAIN`.
        """
        for name in [name for name in self.names if name not in names]:
            self._retire(name)
        for name in [name for name in names if name not in self.names]:
            self._start(name, is_further=True)

    def loads(self) -> dict[str, int]:
        """Calls in flight, by actor name."""
        return self._calls.loads.by_name()

    def pending(self) -> list[Pending]:
        """What is in flight, and who is to join. May be asked from any thread."""
        return self._calls.pending() + (self._newcomers.pending() if self._newcomers else [])

    def map_unordered(
        self,
        call: Callable[[ActorT, ItemT], ObjectRef],
        items: Iterable[ItemT | None],
        *,
        max_in_flight: float,
        about: Callable[[ItemT], str] = str,
        patience_s: float | None = None,
    ) -> Iterator[tuple[ItemT, int, Any] | None]:
        """Yield (item, attempt, result) as results arrive; each item goes to the actor with the fewest calls in flight.

        `about`: an item's name for people. No actor gets more than `max_in_flight` calls at a time for each unit of its capacity.
        Items of a lost actor go to another. The first other failure is raised and ends the iteration; what is still running then,
        or when the caller stops early, is cancelled. None is yielded where nothing has arrived for `patience_s`, and nothing may
        have: the caller can turn to something else in between, also to another map. `items` is read as there is room for them;
        None among them says that there is none for now, though there may be later, and needs `patience_s`.
        """
        to_come, again = iter(items), deque[tuple[ItemT, int]]()
        has_more = True
        running: dict[ObjectRef, tuple[ItemT, int]] = {}
        caller, loads = object(), self._calls.loads
        try:
            while has_more or again or running:
                # With nothing of its own running a map starts one call in any case: the pool's room may be taken by another map.
                while self.actors and (not running or loads.has_room(max_in_flight)):
                    if again:
                        item, attempt = again.popleft()
                    else:
                        following = next(to_come, END)
                        has_more = following is not END
                        if following is END or following is None:
                            break
                        item, attempt = cast("ItemT", following), 1
                    asked = lambda actor, item=item: call(actor, item)  # noqa: E731
                    ref = self.start(loads.least_loaded(), asked, about=about(item), caller=caller)
                    running[ref] = item, attempt
                if not (has_more or again or running):
                    return
                if not running and not again and patience_s is not None:
                    time.sleep(patience_s)  # nothing can arrive
                ended = self.finished(running, timeout_s=patience_s, caller=caller)
                if patience_s is not None and not ended:
                    yield None
                for ref, result in ended:
                    item, attempt = running.pop(ref)
                    if result is AGAIN:
                        again.appendleft((item, attempt))
                    elif result is LOST:
                        self._check_attempts(about(item), attempt)
                        again.appendleft((item, attempt + 1))
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
        asked, caller = dict(self.actors), object()

        def ask(name: str) -> ObjectRef:
            return self.start(name, call, about=about, deadline_s=deadline_s, caller=caller)

        running = {ask(name): name for name in asked}
        results: dict[str, Any] = {}
        while running:
            for ref, result in self.finished(running, caller=caller):
                name = running.pop(ref)
                if result is not LOST and result is not AGAIN:
                    results[name] = result
                elif self.actors.get(name) is asked[name]:
                    running[ask(name)] = name
        found = {name: results[name] for name in asked if name in results}
        for result in found.values():
            if isinstance(result, RaywardError):
                raise result
        return found

    def start(
        self,
        name: str,
        call: Callable[[ActorT], ObjectRef],
        *,
        about: str = "an answer",
        deadline_s: float | None = None,
        caller: Hashable = None,
    ) -> ObjectRef:
        """Begin one call; `finished` tells how it ended. `about`: what is asked for, in words for people.

        `caller`: whoever shares the pool with others passes the same here and to `finished`, which then never looks through what
        has ended for others.
        """
        actor = self.actors[name]
        if self._supervision is not None and not self._calls.loads[name]:
            self._watch(name, self._supervision)
        ref = call(actor)
        owed = Pending(whom=name, what=about, since_s=time.monotonic())
        self._calls.begin(ref, Call(name=name, actor=actor, owed=owed, deadline_s=deadline_s, caller=caller))
        self._arrivals.expect(ref)
        return ref

    def abandon(self, refs: Iterable[ObjectRef]) -> None:
        """Nobody waits for these calls any more; those that have not begun never will."""
        for ref in refs:
            self._calls.forget(ref)
            ray.cancel(ref)

    def wait_for_an_actor(self) -> None:
        """Return once one actor takes work. Raises where none is left and none is on its way."""
        while not self.actors:
            if not self._newcomers:
                raise RaywardError("every actor is lost, and none is on its way")
            self.finished([])

    def shut_down(self, call: Callable[[ActorT], ObjectRef], *, timeout_s: float) -> None:
        """Call every actor for the last time, unsupervised, and wait for all of them together for so long at most.

        What does not answer is left to the end of Ray; replacements on their way are ended. Never raises for a lost actor: the
        error that ends a run says more.
        """
        self._next_look_s = math.inf
        if self._newcomers:
            self._newcomers.end()
        self._supervision = self._newcomers = None
        refs = [call(actor) for actor in self.actors.values()]
        ray.wait(refs, num_returns=len(refs), timeout=timeout_s)

    def finished(
        self, refs: Collection[ObjectRef], *, timeout_s: float | None = None, caller: Hashable = None
    ) -> list[tuple[ObjectRef, Any]]:
        """Calls of `refs` that have ended, with their results, `LOST`, `AGAIN`, or the error of a failure that is no loss.

        Waits up to `timeout_s` (None: for ever) for one of them to end, or for a replacement to join the pool. All of `refs` were
        started with the same `caller`.
        """
        until_s = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while True:
            num_actors = len(self)
            is_waiting = (refs or self._newcomers) and not self._calls.has_ended(refs, caller)
            self._receive(until_s if is_waiting else -math.inf)
            ended = self._outcomes(refs, caller)
            if any(result is AGAIN for _, result in ended):
                time.sleep(BLIP_PAUSE_S)
            if time.monotonic() >= self._next_look_s:
                self._look()
                ended += self._outcomes(refs, caller)
            has_joined, is_late = len(self) > num_actors, time.monotonic() >= until_s
            if ended or has_joined or is_late or not (refs or self._newcomers):
                return ended

    def _receive(self, until_s: float) -> None:
        """Note which calls have ended, and admit replacements; waits for the first, for the next look at most."""
        wait_s = min(until_s, self._next_look_s) - time.monotonic()
        arrived = self._arrivals.take(timeout_s=None if wait_s == math.inf else max(0.0, wait_s))
        for ref, answer in arrived:
            self._calls.end(ref, answer)
        for arrival in arrived:
            if self._newcomers and arrival.ref in self._newcomers:
                self._admit(self._newcomers.proceed(arrival))

    def _retire(self, name: str) -> None:
        if not (self._newcomers and self._newcomers.end(name)):
            self._calls.take_back(self.actors[name])
            ray.kill(self._calls.dismiss(name))
        self._supervised.give_back(name)

    def _outcomes(self, refs: Collection[ObjectRef], caller: Hashable) -> list[tuple[ObjectRef, Any]]:
        """What the caller's calls came to; those that were lost or taken back may never resolve."""
        taken = self._calls.take(refs, caller)
        return [(ref, LOST if call.is_lost else AGAIN if call.is_taken_back else self._result(call)) for ref, call in taken]

    @property
    def _supervised(self) -> Supervision[ActorT]:
        assert self._supervision is not None, "without one nobody has a deadline, is replaced, or comes later"
        return self._supervision

    def _check_attempts(self, item: str, attempt: int) -> None:
        """An item that takes every actor with it would otherwise be handed on for ever, while others finish in between."""
        if attempt > self._supervised.max_losses:
            raise RaywardError(f"{attempt} actors were lost while they worked on {item}")

    def _result(self, call: Call[ActorT]) -> Any:
        assert call.answer is not None, "it has ended by itself"
        try:
            result = call.answer.result()
        except RayError as error:
            return self._failed(call, error)
        if call.name in self._pulses:
            self._pulses[call.name].move()
        self._has_answered.add(call.name)
        self._losses[call.name] = self._blips[call.name] = 0
        return result

    def _failed(self, call: Call[ActorT], error: RayError) -> object:
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
            return cause if isinstance(cause, RaywardError) else failure_of(call.name, error)
        if self.actors.get(call.name) is call.actor:
            self._lose(call.name, self._why_lost(error))
        return LOST

    def _watch(self, name: str, supervision: Supervision[ActorT]) -> None:
        """An actor gets work after it had none."""
        pulse = self._pulses.get(name)
        if pulse is None or pulse.actor is not self.actors[name]:
            self._pulses[name] = Pulse(self.actors[name], supervision)
        else:
            pulse.move()
        self._look_after(supervision.look_s)

    def _look_after(self, seconds: float) -> None:
        self._next_look_s = min(self._next_look_s, time.monotonic() + seconds)

    def _look(self) -> None:
        """Lose those that hang. Takes time for each actor and call, a few times a deadline, however many calls end in between.

        Where the caller was away, the look is late and nobody was asked for long: what they answer now counts at the next one.
        """
        is_late = time.monotonic() - self._next_look_s > self._supervised.look_s
        self._next_look_s = math.inf
        own_deadlines_s = self._calls.own_deadlines_s()
        for name in [name for name, load in self.loads().items() if load]:
            self._pulses[name].listen()
            left_s = self._ends_s(name, own_deadlines_s.get(name, 0.0)) - time.monotonic()
            if is_late:
                self._look_after(self._supervised.look_s)
            elif left_s < 0:
                self._lose(name, self._why_it_hangs(name, self._calls.lose(self.actors[name])))
            else:
                self._look_after(min(left_s, self._supervised.look_s))
        assert self._newcomers is not None, "they come with a supervision"
        for late in self._newcomers.take_late():
            self._has_not_come(late, not_started(self._supervised.start_deadline_s, setting=START_DEADLINE))
        if self._newcomers:
            self._look_after(self._newcomers.next_look_s())

    def _ends_s(self, name: str, own_s: float) -> float:
        """When an actor at work counts as lost, unless it makes progress before. `own_s`: the longest deadline of its calls."""
        supervision = self._supervised
        deadline_s = supervision.deadline_s if name in self._has_answered else supervision.start_deadline_s
        return self._pulses[name].moved_s + max(deadline_s, own_s)

    def _why_lost(self, error: RayError | RaywardError) -> str:
        advice = f"; {self._supervised.memory_advice}" if is_out_of_memory(error) else ""
        return reason_of(error) + advice

    def _why_it_hangs(self, name: str, num_calls: int) -> str:
        pulse = self._pulses[name]
        if name not in self._has_answered:
            return not_started(self._supervised.start_deadline_s, setting=START_DEADLINE, is_up=pulse.is_heard)
        return f"{num_calls} calls in flight, and no progress for {time.monotonic() - pulse.moved_s:.0f} s"

    def _lose(self, name: str, reason: str) -> None:
        self._replace(name, self._calls.dismiss(name), reason)

    def _replace(self, name: str, actor: ActorT, reason: str) -> None:
        ray.kill(actor)  # it may still run, and its successor needs its place
        self.num_lost += 1
        self._losses[name] += 1
        if self._losses[name] > self._supervised.max_losses:
            raise RaywardError(f"{name} was lost {self._losses[name]} times in a row, the last time because: {reason}")
        self._supervised.note(f"{name} is lost ({reason}); a replacement is starting")
        self._start(name)

    def _start(self, name: str, *, is_further: bool = False) -> None:
        assert self._newcomers is not None, "they come with a supervision"
        self._newcomers.start(name, is_further=is_further)
        self._look_after(self._supervised.look_s)

    def _has_not_come(self, newcomer: Newcomer[ActorT], reason: str) -> None:
        if not newcomer.is_further:
            self._replace(newcomer.name, newcomer.actor, reason)
            return
        ray.kill(newcomer.actor)
        self._supervised.give_back(newcomer.name)
        self._supervised.note(f"{newcomer.name} has not come ({reason}); the run goes on without it")

    def _admit(self, ended: tuple[Newcomer[ActorT], RayError | RaywardError | None] | None) -> None:
        """After its last answer a newcomer takes work."""
        if ended is None:
            return
        newcomer, problem = ended
        if problem is not None:
            self._has_not_come(newcomer, self._why_lost(problem))
            return
        self._calls.admit(newcomer.name, newcomer.actor)
        self._has_answered.add(newcomer.name)
        self._supervised.note(f"{newcomer.name} {'has joined' if newcomer.is_further else 'is back'}")
