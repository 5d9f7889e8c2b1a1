"""Which calls have ended, in the order in which they did: Ray tells, and nobody asks again and again.

`ray.wait` looks at every reference it is given, so with many calls in flight each result costs time for all of them. The future
of a reference is told once, whatever else is in flight. Ray unpickles the result for it; to ask `ray.get` again would cost as
much once more, and with what surrounds it a quarter of all that the driver does for a call.
"""

from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from ray import ObjectRef


class Arrival(NamedTuple):
    """A call that has ended. Produced by `Arrivals`, consumed by a pool."""

    ref: ObjectRef
    answer: "Future[Any]"  # done: its result is that of `ray.get`, and so is what it raises


class Arrivals:
    """References whose calls have ended, well or not. Filled from Ray's thread, emptied by one thread of the driver."""

    def __init__(self) -> None:
        self._ended: SimpleQueue[Arrival] = SimpleQueue()

    def expect(self, ref: ObjectRef) -> None:
        """`take` returns it once its call has ended: with a result, an error, the death of its actor, or cancelled."""
        ref.future().add_done_callback(lambda answer: self._ended.put(Arrival(ref, answer)))

    def take(self, *, timeout_s: float | None) -> list[Arrival]:
        """Those that have ended since; waits up to `timeout_s` (None: for ever) for the first."""
        ended: list[Arrival] = []
        try:
            if timeout_s != 0:
                ended.append(self._ended.get(timeout=timeout_s))
            while True:
                ended.append(self._ended.get_nowait())
        except Empty:
            return ended
