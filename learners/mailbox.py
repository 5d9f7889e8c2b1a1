"""What the driver and the ranks of a learner say to each other: a start, commands to every rank, one reply back.

No polling: both sides wait on a condition. Imports no torch, for the driver needs none.
"""

import asyncio
from dataclasses import dataclass
from typing import Any, Literal

import ray

from actors.config import DType

Reply = Any  # what rank 0 answers to a command; each method of the learner handle knows its own type


@dataclass(frozen=True, slots=True, kw_only=True)
class StartingPoint:
    """What a rank needs besides its configuration. Produced by the composition root, consumed by `PolicyLearner`."""

    model_path: str  # Hugging Face folder of the start policy, which is the reference too
    temperature: float  # of the sampled distribution
    max_completion_tokens: int  # the length limit of the run's completions
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorLink:
    """How weights reach generators over devices. Produced by the composition root, consumed by `WeightSender`."""

    backend: Literal["nccl", "ipc"]
    generators: tuple[Any, ...]  # handles of Ray actors of a `DeviceFedGenerator`
    workers_per_generator: int  # devices of one engine
    dtype: DType  # what generators compute in


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateCommand:
    """Train on a batch; the reply is an `UpdateResult`."""

    batch: ray.ObjectRef  # of a ScoredBatch; a reference, so that the mailbox never holds the data


@dataclass(frozen=True, slots=True, kw_only=True)
class LogprobsCommand:
    """Log-probabilities of completions; the reply has one tuple a trajectory."""

    trajectories: ray.ObjectRef


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceKLCommand:
    """KL to the reference; the reply has one number a trajectory."""

    trajectories: ray.ObjectRef


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishCommand:
    """Write weights for generators; the reply is a `PublishedWeights`."""

    directory: str
    dtype: DType


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectCommand:
    """Connect every rank to the generators; the reply is None."""

    link: GeneratorLink


@dataclass(frozen=True, slots=True, kw_only=True)
class SendWeightsCommand:
    """Send weights to the generators connected; the reply is a `PublishedWeights`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportCommand:
    """Write a policy folder; the reply is None."""

    directory: str
    dtype: DType


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyCommand:
    """Reply None once the ranks are there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopCommand:
    """Leave the loop; the reply is None."""


Command = (
    UpdateCommand
    | LogprobsCommand
    | ReferenceKLCommand
    | PublishCommand
    | ConnectCommand
    | SendWeightsCommand
    | ExportCommand
    | ReadyCommand
    | StopCommand
)


class Mailbox:
    """Commands are numbered 0, 1, ... in the order in which the driver sends them; an asyncio actor of Ray."""

    def __init__(self, num_ranks: int) -> None:
        self._num_ranks = num_ranks
        self._num_sent = 0
        self._commands: dict[int, Command] = {}  # until every rank has read it: a command pins its batch
        self._num_reads: dict[int, int] = {}
        self._replies: dict[int, Reply] = {}
        self._changed = asyncio.Condition()

    async def send(self, command: Command) -> Reply:
        """Hand a command to all ranks and wait for rank 0's reply."""
        async with self._changed:
            sequence = self._num_sent
            self._num_sent += 1
            self._commands[sequence] = command
            self._changed.notify_all()
            await self._changed.wait_for(lambda: sequence in self._replies)
            return self._replies.pop(sequence)

    async def receive(self, sequence: int) -> Command:
        """Wait for the command of that number; every rank asks for each number once."""
        async with self._changed:
            await self._changed.wait_for(lambda: sequence in self._commands)
            command = self._commands[sequence]
            self._num_reads[sequence] = self._num_reads.get(sequence, 0) + 1
            if self._num_reads[sequence] == self._num_ranks:
                del self._commands[sequence], self._num_reads[sequence]
            return command

    async def reply(self, sequence: int, reply: Reply) -> None:
        """Rank 0's answer."""
        async with self._changed:
            self._replies[sequence] = reply
            self._changed.notify_all()
