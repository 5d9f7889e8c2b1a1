"""How many refusals of one key the front doors have to write out.

A refusal by a front door costs its processor, the proxy's and the counter's; a client that does not wait as it is told could
have so many that others wait. After some of them in one window the proxy refuses that key by itself, for the rest of the window.
"""

import hashlib
import time
from collections.abc import Callable
from typing import Final

MAX_REFUSALS: Final = 4  # of one key in one window; a client that waits as it is told has one for each request too many
WINDOW_S: Final = 1.0  # the shortest time that a refused client is told to wait


class RefusalBudget:
    """Refusals by key, of which it keeps a hash. For one event loop."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._window_ends_s = 0.0
        self._refusals: dict[bytes, int] = {}  # in this window; only good keys are refused by a quota, so there are few

    def note(self, authorization: str) -> None:
        """A front door has refused a request with this header, because of its key's quota."""
        self._begin_window()
        digest = _digest(authorization)
        self._refusals[digest] = self._refusals.get(digest, 0) + 1

    def is_spent(self, authorization: str) -> bool:
        """Whether the next request with this header is to be refused without a front door."""
        self._begin_window()
        return self._refusals.get(_digest(authorization), 0) >= MAX_REFUSALS

    def _begin_window(self) -> None:
        now_s = self._clock()
        if now_s >= self._window_ends_s:
            self._window_ends_s = now_s + WINDOW_S
            self._refusals.clear()


def _digest(authorization: str) -> bytes:
    return hashlib.sha256(authorization.partition(" ")[2].strip().encode()).digest()
