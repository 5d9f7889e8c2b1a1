"""What every rank of a Ray Train group runs: take the next command, obey it, reply from rank 0."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train

from learners.mailbox import (
    Command,
    ConnectCommand,
    ExportCommand,
    LogprobsCommand,
    PublishCommand,
    ReadyCommand,
    ReferenceKLCommand,
    Reply,
    SendWeightsCommand,
    StartingPoint,
    StopCommand,
    UpdateCommand,
)
from learners.policy_config import PolicyLearnerConfig

if TYPE_CHECKING:
    from learners.policy_learner import PolicyLearner


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSetup:
    """Produced by the learner handle, consumed by every rank."""

    start: StartingPoint
    config: PolicyLearnerConfig
    mailbox: Any  # handle of a Mailbox actor


def train_loop_per_worker(loop_config: dict[str, LoopSetup]) -> None:
    """Ray Train's entry point; ends at a StopCommand. An exception ends the whole group, and the handle reports it."""
    from learners.policy_learner import PolicyLearner

    setup = loop_config["setup"]
    context = ray.train.get_context()
    rank = context.get_world_rank()
    learner = PolicyLearner(setup.start, setup.config, rank=rank, world_size=context.get_world_size())
    for sequence in itertools.count():
        command = ray.get(setup.mailbox.receive.remote(sequence))
        reply = _obey(learner, command, rank)
        if rank == 0:
            ray.get(setup.mailbox.reply.remote(sequence, reply))
        if isinstance(command, StopCommand):
            return


def _obey(learner: "PolicyLearner", command: Command, rank: int) -> Reply:
    """All ranks compute together; files are rank 0's alone."""
    match command:
        case UpdateCommand(batch=batch):
            return learner.update(ray.get(batch))
        case LogprobsCommand(trajectories=trajectories):
            return learner.completion_logprobs(ray.get(trajectories))
        case ReferenceKLCommand(trajectories=trajectories):
            return learner.reference_kl(ray.get(trajectories))
        case PublishCommand(directory=directory, dtype=dtype):
            return learner.publish(Path(directory), dtype) if rank == 0 else None
        case ConnectCommand(link=link):
            return learner.connect(link)
        case SendWeightsCommand():
            return learner.send_weights()
        case ExportCommand(directory=directory, dtype=dtype):
            return learner.export(Path(directory), dtype) if rank == 0 else None
        case ReadyCommand() | StopCommand():
            return None
