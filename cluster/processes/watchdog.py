"""Says what a run waits for when nothing moves, and keeps the stacks of its processes: no run hangs without a word.

The watchdog ends nothing: an update of a large model may rightly take long. Deadlines that replace an actor are the pools'.
"""

import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from ray.exceptions import RayError

from cluster.processes.stacks import stacks_of_this_machine
from cluster.storage.atomic_file import write_atomically

LOOKS_PER_DEADLINE = 20
MAX_LOOK_S = 1.0  # from one look to the next
MAX_SHOWN = 4  # things that one actor owes


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """Something that the driver waits for. Produced by pools and learners, consumed by the watchdog."""

    whom: str  # who owes it
    what: str
    since_s: float  # on the monotonic clock; two that differ only in it are two


@contextmanager
def watched(
    pending: Callable[[], Sequence[Pending]],
    *,
    deadline_s: float,
    note: Callable[[str], None],
    stacks: Path,
    gather: Callable[[threading.Event], str] = stacks_of_this_machine,
) -> Iterator[None]:
    """Inside, whenever `pending()` has stayed the same for `deadline_s`, once a stall: one line to `note`, and a file of stacks.

    `pending` is asked from another thread. `stacks`: the folder for files `stacks-1.txt`, `stacks-2.txt`, ..., also of several
    stages and of a resumed run; `gather` says what is in them, and comes to an end when its event is set. A file that cannot be
    written is told, and the watch goes on.
    """
    over = threading.Event()
    watchdog = threading.Thread(
        target=_watch, args=(over, pending, deadline_s, note, stacks, gather), name="watchdog", daemon=True
    )
    watchdog.start()
    try:
        yield
    finally:
        over.set()
        watchdog.join()


def _watch(
    over: threading.Event,
    pending: Callable[[], Sequence[Pending]],
    deadline_s: float,
    note: Callable[[str], None],
    stacks: Path,
    gather: Callable[[threading.Event], str],
) -> None:
    seen: frozenset[Pending] = frozenset()
    seen_s, is_told = time.monotonic(), False
    while not over.wait(min(MAX_LOOK_S, deadline_s / LOOKS_PER_DEADLINE)):
        now = frozenset(pending())
        if now != seen:
            seen, seen_s, is_told = now, time.monotonic(), False
        elif now and not is_told and time.monotonic() - seen_s >= deadline_s:
            is_told = True
            file = next(name for name in _names(stacks) if not name.exists())
            note(f"nothing has moved for {deadline_s:g} s; waiting for {waiting_for(now)}; stacks of all processes: {file}")
            try:
                write_atomically(file, gather(over))
            except (OSError, psutil.Error, RayError) as error:
                note(f"no stacks: {error}")


def _names(stacks: Path) -> Iterator[Path]:
    return (stacks / f"stacks-{number}.txt" for number in itertools.count(1))


def waiting_for(pending: Collection[Pending]) -> str:
    """One phrase: `generator 0 (reviews/1, reviews/7, ... 12 in all) and the learner (update of step 3)`."""
    owed = defaultdict(list)
    for one in sorted(pending, key=lambda one: (one.whom, one.since_s, one.what)):
        owed[one.whom].append(one.what)
    phrases = []
    for whom, things in owed.items():
        shown = ", ".join(things[:MAX_SHOWN])
        phrases.append(f"{whom} ({shown})" if len(things) <= MAX_SHOWN else f"{whom} ({shown}, ... {len(things)} in all)")
    return " and ".join(phrases)
