"""Which calls have ended, in the order in which they did: Ray tells, and nobody asks again and again.

`ray.wait` looks at every reference it is given, so with many calls in flight each result costs time for all of them. The future
of a reference is told once, whatever else is in flight. Ray unpickles the result for it, and again for whoever takes it: what
pools wait for is small, and arrays lie where they are.
"""

from queue import Empty, SimpleQueue

from ray import ObjectRef


class Arrivals:
    """References whose calls have ended, well or not. Filled from Ray's thread, emptied by one thread of the driver."""

    def __init__(self) -> None:
        self._ended: SimpleQueue[ObjectRef] = SimpleQueue()

    def expect(self, ref: ObjectRef) -> None:
        """`take` returns it once its call has ended: with a result, an error, the death of its actor, or cancelled."""
        ref.future().add_done_callback(lambda _: self._ended.put(ref))

    def take(self, *, timeout_s: float | None) -> list[ObjectRef]:
        """Those that have ended since; waits up to `timeout_s` (None: for ever) for the first."""
        ended: list[ObjectRef] = []
        try:
            if timeout_s != 0:
                ended.append(self._ended.get(timeout=timeout_s))
            while True:
                ended.append(self._ended.get_nowait())
        except Empty:
            return ended
