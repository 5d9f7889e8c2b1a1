"""What every rank of a Ray Train group runs: go on from the newest checkpoint, obey commands, reply from rank 0."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train

from cluster.errors import CannotResumeError, ConfigError, DataError
from cluster.processes.collector_pause import collector_paused
from learners.ranks.mailbox import (
    CheckpointPlan,
    Command,
    ConnectCommand,
    ExportCommand,
    FinishSavingCommand,
    LogprobsCommand,
    PublishCommand,
    ReadyCommand,
    ReferenceKLCommand,
    Reply,
    SaveCommand,
    SendWeightsCommand,
    StartingPoint,
    StopCommand,
    UpdateCommand,
)
from learners.settings.policy import PolicyLearnerConfig

if TYPE_CHECKING:
    from learners.policy.learner import PolicyLearner
    from learners.ranks.checkpoint import CheckpointWriter


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSetup:
    """Produced by the learner handle, consumed by every rank."""

    start: StartingPoint
    config: PolicyLearnerConfig
    checkpoints: CheckpointPlan
    mailbox: Any  # handle of a Mailbox actor


def train_loop_per_worker(loop_config: dict[str, LoopSetup]) -> None:
    """Ray Train's entry point; ends at a StopCommand.

    Where a rank dies or raises, Ray Train starts all ranks anew. What a restart would only repeat goes to the mailbox instead.
    """
    setup = loop_config["setup"]
    try:
        _serve(setup)
    except (ConfigError, DataError, CannotResumeError) as error:
        ray.get(setup.mailbox.fail.remote(error))


def _serve(setup: LoopSetup) -> None:
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    with collector_paused():
        from learners.network.collectives import numbers_of_rank_0
        from learners.policy.learner import PolicyLearner
        from learners.ranks.checkpoint import CheckpointWriter, restore_newest

        learner = PolicyLearner(setup.start, setup.config, rank=rank, world_size=world_size)
    restore_newest(learner, setup.checkpoints, rank=rank, world_size=world_size)
    writer = CheckpointWriter(setup.checkpoints)
    joined = ray.get(setup.mailbox.join.remote()) if rank == 0 else (0, 0)
    group, first = numbers_of_rank_0(joined, rank=rank, world_size=world_size, device=learner.device)
    for sequence in itertools.count(first):
        command = ray.get(setup.mailbox.receive.remote(group, sequence))
        reply = _obey(learner, writer, command, rank)
        if rank == 0:
            ray.get(setup.mailbox.reply.remote(group, sequence, reply))
        if isinstance(command, StopCommand):
            return


def _obey(learner: "PolicyLearner", writer: "CheckpointWriter", command: Command, rank: int) -> Reply:
    """All ranks compute together; files are rank 0's alone."""
    match command:
        case ReadyCommand():
            return learner.num_steps_done
        case UpdateCommand(batch=batch):
            return learner.update(ray.get(batch))
        case LogprobsCommand(trajectories=trajectories):
            return learner.completion_logprobs(ray.get(trajectories))
        case ReferenceKLCommand(trajectories=trajectories):
            return learner.reference_kl(ray.get(trajectories))
        case ConnectCommand(link=link):
            return learner.connect(link)
        case SendWeightsCommand():
            return learner.send_weights()
        case _ if rank == 0:
            return _write(learner, writer, command)
        case _:
            return None


def _write(learner: "PolicyLearner", writer: "CheckpointWriter", command: Command) -> Reply:
    match command:
        case PublishCommand(directory=directory, dtype=dtype):
            return learner.publish(Path(directory), dtype)
        case ExportCommand(directory=directory, dtype=dtype):
            return learner.export(Path(directory), dtype)
        case SaveCommand():
            return writer.begin(learner.num_steps_done, learner.snapshot(), policy_version=learner.policy_version)
        case FinishSavingCommand():
            return writer.finish()
    return None
