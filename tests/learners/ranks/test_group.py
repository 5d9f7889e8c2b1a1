"""What a group of ranks gives back when it is killed."""

import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError, RayError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.util.placement_group import placement_group, placement_group_table

from cluster.errors import ActorLostError, DataError, RaywardError
from cluster.processes.placement import seat_of
from cluster.processes.reservations.seats import SEAT_PREFIX, Seats
from learners.ranks import trainer
from learners.ranks.group import TrainGroup
from learners.ranks.plan import GroupPlan
from learners.ranks.trainer import build_trainer
from learners.settings.training import WorkerConfig

ANOTHER_DRIVER = """
import sys
import ray
from ray.util.placement_group import placement_group

ray.init(address=sys.argv[1], log_to_driver=False)
reservation = placement_group([{"CPU": 0.5}])
ray.get(reservation.ready())
print(reservation.id.hex(), flush=True)
sys.stdin.read()
"""


def _sleep() -> None:
    time.sleep(600)


@pytest.mark.usefixtures("local_ray")
def test_a_killed_group_leaves_the_equal_reservations_of_another_job_and_of_actors(tmp_path: Path) -> None:
    address = ray.get_runtime_context().gcs_address
    with subprocess.Popen(
        [sys.executable, "-c", ANOTHER_DRIVER, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as another:
        assert another.stdout is not None
        theirs = another.stdout.readline().strip()
        ours = placement_group([{"CPU": 0.5}])
        ray.get(ours.ready())
        seats = Seats(print)
        seats.reserve({"generator 3": seat_of(0.5)}, deadline_s=60.0)  # of a pool that has grown since the group was started
        fit = ray.remote(_sleep).options(num_cpus=0, max_retries=0).remote()
        TrainGroup(_plan(tmp_path, max_restarts=0), fit, earlier_reservations=set()).kill()
        table = placement_group_table()
        states = {name: reservation["state"] for name, reservation in table.items()}
        assert (states[ours.id.hex()], states[theirs]) == ("REMOVED", "CREATED")
        [seat] = [each["state"] for each in table.values() if each["name"].startswith(SEAT_PREFIX) and each["name"].endswith("3")]
        assert seat == "CREATED"
        seats.close()


def test_neither_lost_ranks_nor_a_group_that_cannot_start_are_tried_for_ever(tmp_path: Path) -> None:
    failures = build_trainer(_plan(tmp_path, max_restarts=2)).run_config.failure_config
    assert (failures.max_failures, failures.controller_failure_limit) == (2, 2)


def test_the_line_about_lost_ranks_says_why_and_what_to_set(tmp_path: Path) -> None:
    told: list[str] = []
    gone = RuntimeError("A worker health check failed.\nWorker info: ...")
    gone.health_check_failure = ActorDiedError()  # type: ignore[attr-defined]
    (teller,) = build_trainer(_plan(tmp_path, max_restarts=2, tell=told.append)).run_config.callbacks
    teller.after_exception(None, {1: RayActorError(error_msg="Its node has died."), 0: OutOfMemoryError("a page\nof Ray")})
    teller.after_exception(None, {0: gone})
    teller.after_exception(None, {0: ValueError("of its own\nand more")})
    assert told == [
        "rank 0: the machine ran out of memory; Ray's memory monitor ended it; lower micro_batch_tokens or logprob_chunk_tokens"
        " of learner.workers; `rayward plan` shows what each role takes",
        "rank 0: its process has died",
        "rank 0: ValueError: of its own",
    ]


MEMORY = (
    "the machine ran out of memory; Ray's memory monitor ended it; lower micro_batch_tokens or logprob_chunk_tokens of"
    " learner.workers; `rayward plan` shows what each role takes"
)


def lost(error: RayError) -> Exception:
    """As Ray Train tells of a rank that no longer answers."""
    return WorkerHealthCheckFailedError("A worker health check failed.\nWorker info: ...", failure=error)


def test_a_rank_that_was_lost_explains_those_that_were_to_meet_it(tmp_path: Path) -> None:
    told: list[str] = []
    (teller,) = build_trainer(_plan(tmp_path, max_restarts=2, tell=told.append)).run_config.callbacks
    met_nobody = RuntimeError("Connection closed by peer")
    teller.after_exception(None, {0: met_nobody, 1: lost(ActorDiedError()), 2: lost(OutOfMemoryError("a page\nof Ray"))})
    teller.after_exception(None, {0: met_nobody, 1: lost(ActorDiedError())})
    assert told == [f"rank 2: {MEMORY}", "rank 1: its process has died"]


@pytest.mark.parametrize(
    ("raised", "expected", "words"),
    [
        (OutOfMemoryError("a page\nof Ray"), ActorLostError, f"was lost: {MEMORY}"),  # no RayActorError
        (ControllerError(OutOfMemoryError("a page\nof Ray")), ActorLostError, f"was lost: {MEMORY}"),
        (ActorDiedError(), ActorLostError, "was lost: its process has died"),
        (ControllerError(ValueError("of its own")), RaywardError, "the ranks stopped: ValueError: of its own"),
        (WorkerGroupError("text", {0: ValueError("closed"), 1: lost(OutOfMemoryError("p"))}), RaywardError, f"rank 1: {MEMORY}"),
        (WorkerGroupError("text", {0: RuntimeError("closed"), 1: DataError("no texts")}), DataError, "no texts"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_ended_a_group_is_a_loss_or_a_fault_and_names_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, expected: type[Exception], words: str
) -> None:
    class Ended:
        def fit(self) -> None:
            raise pickle.loads(pickle.dumps(raised))  # as it comes from Ray Train's controller

    monkeypatch.setattr(trainer, "build_trainer", lambda plan: Ended())
    for name in (*trainer.TRAIN_ENVIRONMENT, trainer.START_TIMEOUT):
        monkeypatch.setenv(name, "1")  # what `fit` sets ends with the test
    error = trainer.fit(_plan(tmp_path, max_restarts=0))
    assert type(error) is expected
    assert words in str(error)


@pytest.mark.parametrize(
    ("fields", "backend"),
    [
        ({}, "gloo"),
        ({"num_gpus": 1}, "nccl"),
        ({"num_gpus": 1, "num_workers": 2, "sharding": "full", "offload": "cpu"}, "cpu:gloo,cuda:nccl"),
    ],
)
def test_ranks_talk_through_what_carries_their_tensors(tmp_path: Path, fields: dict[str, Any], backend: str) -> None:
    plan = replace(_plan(tmp_path, max_restarts=0), workers=WorkerConfig(**fields))
    assert build_trainer(plan).backend_config.backend == backend


@pytest.mark.parametrize(
    ("fields", "keeps"), [({}, True), ({"num_workers": 2, "sharding": "full"}, False), ({"num_gpus": 1.0}, False)]
)
def test_ranks_with_a_whole_model_in_host_memory_keep_what_tensors_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], keeps: bool
) -> None:
    first, *others = trainer.KEEP_FREED_MEMORY
    monkeypatch.setenv(first, "4")
    plan = replace(_plan(tmp_path, max_restarts=0), workers=WorkerConfig.model_validate(fields))
    set_for_ranks = build_trainer(plan).run_config.worker_runtime_env["env_vars"]
    assert list(set_for_ranks) == (others if keeps else [])  # the user's own value stays


def _plan(storage: Path, *, max_restarts: int, tell: Callable[[str], object] = print) -> GroupPlan:
    return GroupPlan(
        name="ranks",
        train_loop=print,
        setup=None,
        workers=WorkerConfig(num_workers=1, num_cpus=0.5),
        storage=storage,
        max_restarts=max_restarts,
        tell=tell,
    )
