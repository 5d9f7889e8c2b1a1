"""What an exception of Ray says about the actor that was asked: lost, to be asked again, or the caller's fault.

Most losses are no `RayActorError` (ray 2.60, exceptions.py), and a task's error is of two classes at once: `RayTaskError` and
that of its cause. So another actor's death, met inside a task, must not count as the death of the actor that ran the task.
"""

import re
from enum import Enum, auto

from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RaySystemError,
    RayTaskError,
    WorkerCrashedError,
)

from cluster.errors import ActorLostError, RaywardError

LOSSES = (RayActorError, OutOfMemoryError, NodeDiedError, WorkerCrashedError, LocalRayletDiedError, RaySystemError)
MEMORY_WORDS = ("memory monitor", "running low on memory")  # not "OOM", which Ray guesses for any process that ends
IN_USE = re.compile(r"was (?P<used>[\d.]+)GB used / (?P<total>[\d.]+)GB limit")  # this and the next as ray 2.60 writes them
LIMIT = re.compile(r"exceeded threshold of \d+B \((?P<percent>[\d.]+)% of")
ENDED = re.compile(r"Selected to kill: .*task name=(?P<title>.+?)(\.__init__)?, .*actual memory used=(?P<gb>[\d.]+)GB")
LARGEST = re.compile(r"^\d+\t(?P<gb>[\d.]+)\t(?P<title>.+)$", re.MULTILINE)

MAX_REASON_CHARACTERS = 300
MAX_TITLE_CHARACTERS = 40  # of a process
NUM_LARGEST = 3  # processes that are named where memory runs out


class Outcome(Enum):
    """What a failed call is."""

    LOST = auto()  # its actor, or what the actor works with, is gone: replace it and ask another
    AGAIN = auto()  # the actor is well, or will be in a moment: ask again
    FAILED = auto()  # the call itself cannot succeed


def outcome_of(error: RayError) -> Outcome:
    """Sort what `ray.get` raised for a call of an actor."""
    match error:
        case RayTaskError():
            return Outcome.LOST if isinstance(error.cause, ActorLostError) else Outcome.FAILED
        case ActorUnavailableError() | ObjectLostError():
            return Outcome.AGAIN
        case RayActorError(actor_init_failed=True):
            return Outcome.FAILED
        case _ if isinstance(error, LOSSES):
            return Outcome.LOST
    return Outcome.FAILED


def reason_of(error: Exception) -> str:
    """One line for people, where Ray writes a page."""
    if isinstance(error, RayTaskError):
        return first_line(error.cause) if isinstance(error.cause, ActorLostError) else repr(error.cause)
    if isinstance(error, RayActorError) and error.actor_init_failed:
        return _raised_at_the_end(str(error))
    if is_out_of_memory(error):
        return _out_of_memory(str(error))
    match error:
        case ActorDiedError() | WorkerCrashedError():
            return "its process has died"
        case NodeDiedError() | LocalRayletDiedError():
            return "its node has died"
        case ObjectLostError():
            return "an object that it needs was lost with another process"
    return first_line(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Ray's memory monitor ended the process. Of the kernel's kills Ray knows nothing for certain."""
    return isinstance(error, OutOfMemoryError) or any(words in str(error) for words in MEMORY_WORDS)


def _out_of_memory(page: str) -> str:
    """With the sizes that Ray's monitor found; a generator's engine is a process beside it, and among the largest."""
    in_use, limit = IN_USE.search(page), LIMIT.search(page)
    ended, largest = (
        [f"{found['title'].strip()[:MAX_TITLE_CHARACTERS]} {found['gb']} GB" for found in pattern.finditer(page)]
        for pattern in (ENDED, LARGEST)
    )
    parts = [
        "the machine ran out of memory"
        + (f": {in_use['used']} of {in_use['total']} GB were in use" if in_use else "")
        + (f", the limit is {limit['percent']} %" if limit else ""),
        f"Ray's memory monitor ended {', '.join(ended) or 'it'}",
    ]
    if largest:
        parts.append(f"the largest processes: {', '.join(largest[:NUM_LARGEST])}")
    return "; ".join(parts)


def _raised_at_the_end(traceback: str) -> str:
    """What a traceback says was raised, on one line: a message may go on for several."""
    lines = [line.strip() for line in traceback.splitlines() if line.strip()]
    starts = [index for index, line in enumerate(lines) if re.match(r"[\w.]+(Error|Exception)\b", line)]
    return " ".join(lines[starts[-1] if starts else -1 :])[:MAX_REASON_CHARACTERS]


def first_line(error: BaseException) -> str:
    """Of the message; the name of its class where there is none."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def failure_of(name: str, error: RayError) -> RaywardError:
    """What people are told of an actor whose call cannot succeed."""
    verb = "failed" if isinstance(error, RayTaskError) else "is lost"
    failure = RaywardError(f"actor {name!r} {verb}: {reason_of(error)}")
    failure.__cause__ = error
    return failure
