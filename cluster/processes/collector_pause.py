"""Python's cycle collector, out of the way while a process starts."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """For imports and set-up, whose objects stay: Python's cycle collector looks through them hundreds of times for nothing.

    Those passes are about a fifth of the CPU seconds of importing vLLM. Later passes skip what was made here.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
