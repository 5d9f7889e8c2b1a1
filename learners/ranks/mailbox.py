"""What the driver and the ranks of a learner say to each other: calls to every rank, one reply back.

No polling: both sides wait on a condition. Imports no torch, for the driver needs none.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointPlan:
    """Where checkpoints are, and what must be as it was when they were written. Produced by `learners.run`."""

    directory: Path  # every rank reaches it
    keep: int
    facts: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What is asked of the ranks. Produced by a handle, executed by `learners.ranks.loop`; rank 0's result is the reply."""

    function: Callable[..., Any]  # of a module: called with the rank's `Worker` and the arguments
    arguments: tuple[Any, ...] = ()  # an object reference is resolved by each rank, so that the mailbox never holds the data


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of a call. Produced by `Mailbox.send`, consumed by `RanksHandle`."""

    outcome: Literal["replied", "lost", "failed"]
    """replied: by rank 0. lost: the ranks died and others have taken their place. failed: no rank could do it, or ever will."""
    reply: Any = None  # the error, where the outcome is failed; where it is lost, why, in words, as far as it is known


class Mailbox:
    """Calls are numbered 0, 1, ... in the order in which the driver sends them; an asyncio actor of Ray.

    Ranks come in groups, numbered 1, 2, ...: after the death of one rank Ray Train starts all of them anew.
    """

    def __init__(self, num_ranks: int) -> None:
        self._num_ranks = num_ranks
        self._group = 0
        self._group_known = 0  # to the driver, by a reply or by the loss of a call; 0 before it asked anything
        self._num_sent = 0
        self._calls: dict[int, Call | None] = {}  # until every rank has read it: a call pins its batch
        self._num_reads: dict[int, int] = {}
        self._unanswered: set[int] = set()
        self._answers: dict[int, Answer] = {}
        self._failure: Exception | None = None
        self._loss = ""  # of the newest group that was lost, in words
        self._changed = asyncio.Condition()

    async def send(self, call: Call | None) -> Answer:
        """Hand a call to all ranks and wait for what becomes of it; None tells them to leave."""
        async with self._changed:
            if self._failure is not None:
                return Answer(outcome="failed", reply=self._failure)
            if self._group_known not in (0, self._group):
                # Ranks were replaced while nobody asked anything: they are at their checkpoint, not where the driver left them.
                self._group_known = self._group
                return Answer(outcome="lost", reply=self._loss)
            sequence = self._num_sent
            self._num_sent += 1
            self._calls[sequence] = call
            self._unanswered.add(sequence)
            self._changed.notify_all()
            await self._changed.wait_for(lambda: sequence in self._answers or self._failure is not None)
            return self._answers.pop(sequence, Answer(outcome="failed", reply=self._failure))

    async def join(self) -> tuple[int, int]:
        """Rank 0 of a new group is there; returns (number of the group, number of its first call).

        Calls that an earlier group was given are lost. The first group takes what was sent before it came.
        """
        async with self._changed:
            self._group += 1
            first = 0
            if self._group > 1:
                if self._unanswered:
                    self._group_known = self._group
                self._answers |= {sequence: Answer(outcome="lost", reply=self._loss) for sequence in self._unanswered}
                self._unanswered.clear()
                self._calls.clear()
                self._num_reads.clear()
                first = self._num_sent
            self._changed.notify_all()
            return self._group, first

    async def receive(self, group: int, sequence: int) -> Call | None:
        """Wait for the call of that number; every rank asks for each number once. A group that was replaced is to leave."""
        async with self._changed:
            await self._changed.wait_for(lambda: group != self._group or sequence in self._calls)
            if group != self._group:
                return None
            call = self._calls[sequence]
            self._num_reads[sequence] = self._num_reads.get(sequence, 0) + 1
            if self._num_reads[sequence] == self._num_ranks:
                del self._calls[sequence], self._num_reads[sequence]
            return call

    async def reply(self, group: int, sequence: int, reply: Any) -> None:
        """Rank 0's answer."""
        async with self._changed:
            if group == self._group and sequence in self._unanswered:
                self._unanswered.remove(sequence)
                self._group_known = group
                self._answers[sequence] = Answer(outcome="replied", reply=reply)
                self._changed.notify_all()

    async def lose(self, reason: str) -> None:
        """Ranks are lost, and the next group is to come: what calls that they had are told."""
        self._loss = reason

    async def fail(self, error: Exception) -> None:
        """A rank met what no restart mends; it is the answer to all that was and will be sent."""
        async with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()
