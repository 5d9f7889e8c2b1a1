"""Ctrl-C, and the SIGTERM that `ray job stop` sends: once for a clean end, twice for an end at once."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

INTERRUPTED_EXIT_CODE = 130
LAST_ACT_S = 1.0


class Interrupts:
    """What signals do while a run lasts, for the main thread."""

    def __init__(self, *, end_s: float | None = None) -> None:
        """`end_s`: the process ends so long after an interrupt at the latest, unless `over` is called before."""
        self._end = None if end_s is None else threading.Timer(end_s, self._end_unclean)
        self.has_come = False
        self.last_act: Callable[[], None] | None = None  # before an end that runs no `finally`
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
            self._exit_now()
        self.has_come = True
        if self._end is not None:
            self._end.daemon = True
            self._end.start()
        if not self._is_deferred:
            raise KeyboardInterrupt
        signal.setitimer(signal.ITIMER_REAL, self._grace_s)

    def on_grace_over(self, number: int, frame: FrameType | None) -> None:
        """Handles SIGALRM."""
        if self._is_deferred:
            raise KeyboardInterrupt

    def over(self) -> None:
        """Everything has ended cleanly: the process may go on."""
        if self._end is not None:
            self._end.cancel()

    def _end_unclean(self) -> None:
        """A signal to all processes of a run ends Ray's daemons too, and calls to Ray may then wait for a minute."""
        sys.stderr.write("interrupted; a clean end takes too long, so what is left is ended as it is; resume the run\n")
        self._exit_now()

    def _exit_now(self) -> NoReturn:
        if self.last_act is not None:  # beside this thread, which may hold what it needs, or wait for a slow disk
            act = threading.Thread(target=self.last_act, daemon=True)
            act.start()
            act.join(LAST_ACT_S)
        os._exit(INTERRUPTED_EXIT_CODE)


@contextmanager
def interruptible(interrupts: Interrupts) -> Iterator[None]:
    """Ctrl-C and SIGTERM end what is inside with `KeyboardInterrupt`; a second one ends the process.

    The second finds no clean end: the session guard ends what is left. Enter it after Ray, whose own handler would abort.
    """
    # A shell lets its background jobs ignore Ctrl-C; that stays.
    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupts.on_signal) for number in numbers}
    before[signal.SIGALRM] = signal.signal(signal.SIGALRM, interrupts.on_grace_over)
    try:
        yield
    finally:
        if not interrupts.has_come:  # else the process is on its way out, and a second signal may still come
            for number, handler in before.items():
                signal.signal(number, handler)
