"""What a spawned process imports first, in place of a Ray worker's script.

multiprocessing's spawn runs the parent's main module in the child, under the name `__mp_main__`, before it looks at what the
child is to do. In an actor that is the script of Ray's workers, which imports Ray once more: over a second of the start of an
engine process, which does not use it.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

OBJECTS_BETWEEN_PASSES = 50_000  # Python's few hundred have it look 1,700 times while vLLM's engine is imported


@contextmanager
def spawned_lightly() -> Iterator[None]:
    """Processes that are spawned inside run this file first, and their cycle collector looks less often, for ever."""
    main, stand_in = sys.modules["__main__"], ModuleType("__main__")
    stand_in.__file__ = __file__
    sys.modules["__main__"] = stand_in
    try:
        yield
    finally:
        sys.modules["__main__"] = main


if __name__ == "__mp_main__":
    gc.set_threshold(OBJECTS_BETWEEN_PASSES)
