"""Why an engine ended, and which requests were inside.

An engine that SIGKILL or SIGTERM ended was ended from outside: by a person, or where memory ran out. Any other end is a crash,
and the requests that it worked on are suspects.
"""

import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Final

FROM_OUTSIDE: Final = frozenset({-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT})
EXIT_WITHIN_S = 1.0


class EngineWatch:
    """Counts the requests inside one engine. For one event loop."""

    def __init__(self, processes: Collection[BaseProcess]) -> None:
        """`processes` of the engine, as `multiprocessing.active_children` has them once it runs."""
        self._processes = tuple(processes)
        self._num_inside = 0
        self._num_at_death: int | None = None
        self._has_crashed: bool | None = None

    @contextmanager
    def request(self) -> Iterator[None]:
        """Around the engine's work on one request."""
        self._num_inside += 1
        try:
            yield
        finally:
            self._num_inside -= 1

    def crashed(self) -> bool:
        """Whether the engine, which is dead, ended by itself. One that told of its end is a crash, though it may still run.

        The first call waits for its exit code, `EXIT_WITHIN_S` at most; the engine's own watcher may be about to collect it.
        """
        if self._has_crashed is None:
            for process in self._processes:
                process.join(EXIT_WITHIN_S)
            self._has_crashed = not any(process.exitcode in FROM_OUTSIDE for process in self._processes)
        return self._has_crashed

    def num_at_death(self) -> int:
        """Requests inside when the first of them learned of the engine's end. To be called from within `request`."""
        if self._num_at_death is None:
            self._num_at_death = self._num_inside
        return self._num_at_death
