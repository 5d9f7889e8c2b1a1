"""What an exception of Ray says about the actor that was asked: lost, to be asked again, or the caller's fault.

Most losses are no `RayActorError` (ray 2.60, exceptions.py), and a task's error is of two classes at once: `RayTaskError` and
that of its cause. So another actor's death, met inside a task, must not count as the death of the actor that ran the task.
"""

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

from cluster.errors import ActorLostError

LOSSES = (RayActorError, OutOfMemoryError, NodeDiedError, WorkerCrashedError, LocalRayletDiedError, RaySystemError)
MEMORY_WORDS = ("memory monitor", "running low on memory")  # not "OOM", which Ray guesses for any process that ends


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
        return str(error).strip().splitlines()[-1]  # of a traceback: what was raised
    text = str(error)
    if isinstance(error, OutOfMemoryError) or any(words in text for words in MEMORY_WORDS):
        return "the machine ran out of memory, and Ray or the kernel ended it"
    match error:
        case ActorDiedError() | WorkerCrashedError():
            return "its process has died"
        case NodeDiedError() | LocalRayletDiedError():
            return "its node has died"
        case ObjectLostError():
            return "an object that it needs was lost with another process"
    return first_line(error)


def first_line(error: BaseException) -> str:
    """Of the message; the name of its class where there is none."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
