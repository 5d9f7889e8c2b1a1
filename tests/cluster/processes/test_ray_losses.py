"""Exceptions of Ray, sorted as its own text says what they are."""

import pytest
import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ActorUnschedulableError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    OwnerDiedError,
    RayActorError,
    RayError,
    RaySystemError,
    RayTaskError,
    RuntimeEnvSetupError,
    TaskCancelledError,
    WorkerCrashedError,
)

from cluster.errors import ActorLostError, DataError
from cluster.processes.losses import Outcome, outcome_of, reason_of

RAYS_PAGE = "Task was killed due to the node running low on memory.\nMemory on the node was 23 GB / 24 GB\nTop users:\n..."


def raised_in_a_task(cause: Exception) -> RayError:
    """As `ray.get` gives it: of the class of its cause, too."""
    error = RayTaskError(function_name="f", traceback_str="Traceback ...", cause=cause)
    dual = error.as_instanceof_cause()
    assert isinstance(dual, RayError)
    return dual


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ActorDiedError(), Outcome.LOST),
        (RayActorError(), Outcome.LOST),
        (OutOfMemoryError(RAYS_PAGE), Outcome.LOST),
        (NodeDiedError("node"), Outcome.LOST),
        (WorkerCrashedError(), Outcome.LOST),
        (LocalRayletDiedError(), Outcome.LOST),
        (RaySystemError("a worker that did not start"), Outcome.LOST),
        (raised_in_a_task(ActorLostError("its engine has died")), Outcome.LOST),
        (ActorUnavailableError("for a moment", None), Outcome.AGAIN),
        (ObjectLostError("00" * 28, None, ""), Outcome.AGAIN),
        (OwnerDiedError("00" * 28, None, ""), Outcome.AGAIN),
        (raised_in_a_task(ActorDiedError()), Outcome.FAILED),  # of another actor, that the one which was asked had asked
        (raised_in_a_task(ValueError("7")), Outcome.FAILED),
        (raised_in_a_task(DataError("no such column")), Outcome.FAILED),
        (RuntimeEnvSetupError("no such package"), Outcome.FAILED),
        (ActorUnschedulableError("no such device"), Outcome.FAILED),
        (TaskCancelledError(), Outcome.FAILED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, RayError) else str(value),
)
def test_each_exception_is_a_loss_a_blip_or_a_fault(error: RayError, expected: Outcome) -> None:
    assert outcome_of(error) is expected


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OutOfMemoryError(RAYS_PAGE), "ran out of memory"),
        (ActorDiedError(), "its process has died"),
        (RayActorError(error_msg="Its worker died.\nPerhaps (1) the process was killed by the OOM killer."), "Its worker died."),
        (NodeDiedError("node 7\nis gone"), "its node has died"),
        (raised_in_a_task(ActorLostError("its engine has died: signal 9\nmore")), "its engine has died: signal 9"),
        (raised_in_a_task(ValueError("7")), "ValueError('7')"),
        (RaySystemError("System error: one\ntwo"), "System error: one"),
    ],
)
def test_people_are_told_one_line(error: RayError, words: str) -> None:
    assert words in reason_of(error)
    assert "\n" not in reason_of(error)


@pytest.mark.usefixtures("local_ray")
def test_an_actor_that_met_anothers_death_is_not_lost() -> None:
    class Mortal:
        def die(self) -> None:
            ray.actor.exit_actor()

    class Asker:
        def ask(self, other: "ray.actor.ActorHandle") -> None:
            ray.get(other.die.remote())

    mortal, asker = (ray.remote(num_cpus=0)(plain).remote() for plain in (Mortal, Asker))
    with pytest.raises(RayActorError) as caught:  # as if the asker itself had died
        ray.get(asker.ask.remote(mortal))
    assert outcome_of(caught.value) is Outcome.FAILED


def test_a_start_that_failed_says_what_was_raised_though_its_message_goes_on() -> None:
    page = "The actor died in its creation task\n  File ...\nlib.ValidationError: 1 error\n  too long\n  see ..."
    assert reason_of(RayActorError(error_msg=page, actor_init_failed=True)) == "lib.ValidationError: 1 error too long see ..."
