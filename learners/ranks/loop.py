"""What every rank of a Ray Train group runs: go on from the newest checkpoint, execute calls, reply from rank 0."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray

from cluster.errors import BatchLostError, CannotResumeError, ConfigError, DataError
from cluster.processes.collector_pause import collector_paused
from cluster.types import SaveReport
from learners.ranks.mailbox import Call, CheckpointPlan

if TYPE_CHECKING:
    from learners.ranks.checkpoint import Checkpointed, CheckpointWriter


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSetup:
    """Produced by `RanksHandle`, consumed by every rank."""

    build: Callable[[int, int], "Checkpointed"]
    """(rank, number of ranks) -> the learner; imports torch where it is called, never where it is defined."""
    checkpoints: CheckpointPlan
    mailbox: Any  # handle of a Mailbox actor


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One rank at work. The first argument of every function that a `Call` carries."""

    rank: int
    learner: Any  # what `LoopSetup.build` returned; each function knows its own type
    writer: "CheckpointWriter | None"  # None where this rank has nothing to write that others have not


def train_loop_per_worker(loop_config: dict[str, LoopSetup]) -> None:
    """Ray Train's entry point; ends when the mailbox has no more calls for this group.

    Where a rank dies or raises, Ray Train starts all ranks anew. What a restart would only repeat goes to the mailbox instead.
    """
    setup = loop_config["setup"]
    try:
        _serve(setup)
    except (ConfigError, DataError, CannotResumeError) as error:
        ray.get(setup.mailbox.fail.remote(error))


def num_steps_done(worker: Worker) -> int:
    """More than 0 where a checkpoint was restored."""
    steps: int = worker.learner.num_steps_done
    return steps


def begin_saving(worker: Worker) -> SaveReport | None:
    """Begin to write this rank's part of a checkpoint; how the one before ended, None where there was none."""
    if worker.writer is None:
        return None
    learner = worker.learner
    return worker.writer.begin(learner.num_steps_done, learner.snapshot(), policy_version=learner.policy_version)


def finish_saving(worker: Worker) -> SaveReport | None:
    """Wait for the checkpoint that is being written; how that ended, None where there is none."""
    return None if worker.writer is None else worker.writer.finish()


def execute(call: Call, worker: Worker) -> Any:
    """What the call's function returns on this rank, or the `BatchLostError` that it raises on every one."""
    arguments = [ray.get(argument) if isinstance(argument, ray.ObjectRef) else argument for argument in call.arguments]
    try:
        return call.function(worker, *arguments)
    except BatchLostError as error:
        return error


def _serve(setup: LoopSetup) -> None:
    from ray.train import get_context  # a second, which the driver need not wait for

    context = get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    with collector_paused():
        from learners.network.collectives import numbers_of_rank_0
        from learners.ranks.checkpoint import checkpoint_writer, restore_newest

        learner = setup.build(rank, world_size)
    restore_newest(learner, setup.checkpoints, rank=rank, world_size=world_size)
    worker = Worker(rank=rank, learner=learner, writer=checkpoint_writer(setup.checkpoints, learner.shard, rank=rank))
    joined = ray.get(setup.mailbox.join.remote()) if rank == 0 else (0, 0)
    group, first = numbers_of_rank_0(joined, rank=rank, world_size=world_size, device=learner.device)
    for sequence in itertools.count(first):
        call: Call | None = ray.get(setup.mailbox.receive.remote(group, sequence))
        reply = None if call is None else execute(call, worker)
        if rank == 0:
            ray.get(setup.mailbox.reply.remote(group, sequence, reply))
        if call is None:
            return
