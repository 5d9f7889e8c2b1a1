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

RAYS_PAGE = (  # what matters in it of what ray 2.60 wrote when it was tried
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 127.0.0.1, ID: 31fa) was 13.14GB"
    " used / 23.54GB limit (0.558301)\nOOM kill reason: Memory usage 14008754176B exceeded threshold of 14008242176B (55.4% of"
    " 25276510208B limit)\nRay killed 1 worker(s) based on the killing policy\nConsidered workers: [\nSelected to kill:"
    " (Actor(1610): job ID=01000000, task name=Worker.__init__, pid=20016, actual memory used=0.36GB, worker ID=910f)\n]\n"
    "Top 10 memory users: PID\tMEM(GB)\tCOMMAND\n13769\t7.55\tpython prof.py\n19598\t1.89\tVLLM::EngineCore\n"
    "18719\t0.84\tray::RayTrainWorker\n19076\t0.45\tpython\nRefer to the documentation on how to ..."
)


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
        (
            OutOfMemoryError(RAYS_PAGE),
            "the machine ran out of memory: 13.14 of 23.54 GB were in use, the limit is 55.4 %; Ray's memory monitor ended"
            " Worker 0.36 GB; the largest processes: python prof.py 7.55 GB, VLLM::EngineCore 1.89 GB, ray::RayTrainWorker 0.84"
            " GB",
        ),
        (OutOfMemoryError("another text\nof Ray"), "the machine ran out of memory; Ray's memory monitor ended it"),
        (RayActorError(error_msg=RAYS_PAGE), "13.14 of 23.54 GB were in use"),
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
