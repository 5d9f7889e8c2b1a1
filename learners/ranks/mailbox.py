"""What the driver and the ranks of a learner say to each other: a start, commands to every rank, one reply back.

No polling: both sides wait on a condition. Imports no torch, for the driver needs none.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
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
class CheckpointPlan:
    """Where checkpoints are, and what must be as it was when they were written. Produced by the composition root."""

    directory: Path  # every rank reaches it
    keep: int
    facts: Mapping[str, str]


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
class SaveCommand:
    """Begin to write a checkpoint; the reply is the `SaveReport` of the one before, or None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishSavingCommand:
    """Wait for the checkpoint that is being written; the reply is its `SaveReport`, or None where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyCommand:
    """The reply is the number of steps done, once the ranks are there: more than 0 where a checkpoint was restored."""


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
    | SaveCommand
    | FinishSavingCommand
    | ReadyCommand
    | StopCommand
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of a command. Produced by `Mailbox.send`, consumed by the learner handle."""

    outcome: Literal["replied", "lost", "failed"]
    """replied: by rank 0. lost: the ranks died and others have taken their place. failed: no rank could do it, or ever will."""
    reply: Reply = None  # the error, where the outcome is failed


class Mailbox:
    """Commands are numbered 0, 1, ... in the order in which the driver sends them; an asyncio actor of Ray.

    Ranks come in groups, numbered 1, 2, ...: after the death of one rank Ray Train starts all of them anew.
    """

    def __init__(self, num_ranks: int) -> None:
        self._num_ranks = num_ranks
        self._group = 0
        self._num_sent = 0
        self._commands: dict[int, Command] = {}  # until every rank has read it: a command pins its batch
        self._num_reads: dict[int, int] = {}
        self._unanswered: set[int] = set()
        self._answers: dict[int, Answer] = {}
        self._failure: Exception | None = None
        self._changed = asyncio.Condition()

    async def send(self, command: Command) -> Answer:
        """Hand a command to all ranks and wait for what becomes of it."""
        async with self._changed:
            if self._failure is not None:
                return Answer(outcome="failed", reply=self._failure)
            sequence = self._num_sent
            self._num_sent += 1
            self._commands[sequence] = command
            self._unanswered.add(sequence)
            self._changed.notify_all()
            await self._changed.wait_for(lambda: sequence in self._answers or self._failure is not None)
            return self._answers.pop(sequence, Answer(outcome="failed", reply=self._failure))

    async def join(self) -> tuple[int, int]:
        """Rank 0 of a new group is there; returns (number of the group, number of its first command).

        Commands that an earlier group was given are lost. The first group takes what was sent before it came.
        """
        async with self._changed:
            self._group += 1
            first = 0
            if self._group > 1:
                self._answers |= {sequence: Answer(outcome="lost") for sequence in self._unanswered}
                self._unanswered.clear()
                self._commands.clear()
                self._num_reads.clear()
                first = self._num_sent
            self._changed.notify_all()
            return self._group, first

    async def receive(self, group: int, sequence: int) -> Command:
        """Wait for the command of that number; every rank asks for each number once. A group that was replaced is to stop."""
        async with self._changed:
            await self._changed.wait_for(lambda: group != self._group or sequence in self._commands)
            if group != self._group:
                return StopCommand()
            command = self._commands[sequence]
            self._num_reads[sequence] = self._num_reads.get(sequence, 0) + 1
            if self._num_reads[sequence] == self._num_ranks:
                del self._commands[sequence], self._num_reads[sequence]
            return command

    async def reply(self, group: int, sequence: int, reply: Reply) -> None:
        """Rank 0's answer."""
        async with self._changed:
            if group == self._group and sequence in self._unanswered:
                self._unanswered.remove(sequence)
                self._answers[sequence] = Answer(outcome="replied", reply=reply)
                self._changed.notify_all()

    async def fail(self, error: Exception) -> None:
        """A rank met what no restart mends; it is the answer to all that was and will be sent."""
        async with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()
