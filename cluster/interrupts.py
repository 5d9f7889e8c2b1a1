"""Ctrl-C, and the SIGTERM that `ray job stop` sends: once for a clean end, twice for an end at once."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED_EXIT_CODE = 130


class Interrupts:
    """What signals do while a run lasts. Made by `interruptible`, for the main thread."""

    def __init__(self) -> None:
        self.has_come = False
        self._is_deferred = False
        self._grace_s = 0.0

    @contextmanager
    def deferred(self, grace_s: float) -> Iterator[None]:
        """What is inside ends first: an interrupt raises at its end, or after `grace_s` in its midst.

        Entered after an interrupt, the `grace_s` count from the entry.
        """
        self._is_deferred, self._grace_s = True, grace_s
        try:
            if self.has_come:
                signal.setitimer(signal.ITIMER_REAL, grace_s)
            yield
        finally:
            self._is_deferred = False
            if self.has_come:
                signal.setitimer(signal.ITIMER_REAL, 0.0)
        self.check()

    def check(self) -> None:
        """Raise where an interrupt has come and not raised yet."""
        if self.has_come:
            raise KeyboardInterrupt

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Handles SIGINT and SIGTERM."""
        if self.has_come:
            os._exit(INTERRUPTED_EXIT_CODE)
        self.has_come = True
        if not self._is_deferred:
            raise KeyboardInterrupt
        signal.setitimer(signal.ITIMER_REAL, self._grace_s)

    def on_grace_over(self, number: int, frame: FrameType | None) -> None:
        """Handles SIGALRM."""
        if self._is_deferred:
            raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[Interrupts]:
    """Ctrl-C and SIGTERM end what is inside with `KeyboardInterrupt`; a second one ends the process.

    The second finds no clean end: the session guard ends what is left. Enter it after Ray, whose own handler would abort.
    """
    interrupts = Interrupts()
    # A shell lets its background jobs ignore Ctrl-C; that stays.
    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupts.on_signal) for number in numbers}
    before[signal.SIGALRM] = signal.signal(signal.SIGALRM, interrupts.on_grace_over)
    try:
        yield interrupts
    finally:
        if not interrupts.has_come:  # else the process is on its way out, and a second signal may still come
            for number, handler in before.items():
                signal.signal(number, handler)
