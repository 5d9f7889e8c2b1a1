"""The learner as the driver sees it: a Ray Train group behind plain calls."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import ray
from ray.exceptions import RayError

from actors.config import DType
from cluster.errors import ActorLostError, LearnerRestartedError, RaywardError
from cluster.processes.watchdog import Pending
from cluster.types import PublishedWeights, SaveReport, ScoredBatch, Trajectory, UpdateResult
from learners.ranks.group import GroupPlan, TrainGroup
from learners.ranks.mailbox import (
    Answer,
    CheckpointPlan,
    Command,
    ConnectCommand,
    ExportCommand,
    FinishSavingCommand,
    GeneratorLink,
    LogprobsCommand,
    Mailbox,
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

LAST_WORDS_S = 1.0  # for the answer of ranks that have just left
STOP_TIMEOUT_S = 60.0  # for ranks to leave after StopCommand; the end of Ray ends them in any case


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerFolders:
    """Where a learner writes. Produced by the composition root, consumed by `LearnerHandle`."""

    storage: Path  # Ray Train's own records
    weights: Path  # published weights, in shared memory of the generators' host
    weights_dtype: DType  # of published and exported weights: what generators compute in


class LearnerHandle:
    """Starts the ranks, hands them commands one at a time, and says why they ended if they do. A context manager."""

    def __init__(
        self, start: StartingPoint, config: PolicyLearnerConfig, folders: LearnerFolders, checkpoints: CheckpointPlan
    ) -> None:
        self._start = start
        self._config = config
        self._checkpoints = checkpoints
        self._folders = folders
        self._publish_command: Command = PublishCommand(directory=str(folders.weights.absolute()), dtype=folders.weights_dtype)
        self._mailbox = self._new_mailbox()
        self._group: TrainGroup | None = None
        self._num_restarts = 0
        self._pending: tuple[Pending, ...] = ()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is None:
            self.stop()
        else:  # the error that is on its way says more than a failure to stop
            self._running().kill()
            ray.kill(self._mailbox)

    def start(self) -> None:
        """Start the ranks; returns at once, and commands wait until all have loaded their models."""
        from learners.ranks.loop import LoopSetup, train_loop_per_worker

        self._group = TrainGroup.start(
            GroupPlan(
                name="learner",
                train_loop=train_loop_per_worker,
                setup=LoopSetup(start=self._start, config=self._config, checkpoints=self._checkpoints, mailbox=self._mailbox),
                workers=self._config.workers,
                storage=self._folders.storage,
                max_restarts=self._config.workers.max_restarts,
            )
        )

    def pending(self) -> tuple[Pending, ...]:
        """The command that the ranks work on. May be asked from any thread."""
        return self._pending

    def wait_until_ready(self) -> int:
        """Steps done, once all ranks have loaded their models and the newest checkpoint, if there is one."""
        return self._call(ReadyCommand())

    def submit(self, batch: ScoredBatch) -> UpdateResult:
        """Train on one batch."""
        return self._call(UpdateCommand(batch=ray.put(batch)))

    def completion_logprobs(self, trajectories: Sequence[Trajectory]) -> tuple[tuple[float, ...], ...]:
        """Log-probability of each completion token, in nats, under the current policy."""
        return self._call(LogprobsCommand(trajectories=ray.put(list(trajectories))))

    def reference_kl(self, trajectories: Sequence[Trajectory]) -> tuple[float, ...]:
        """log(policy / reference) summed over each completion, in nats."""
        return self._call(ReferenceKLCommand(trajectories=ray.put(list(trajectories))))

    def save(self) -> SaveReport | None:
        """Begin to write a checkpoint of the steps done; how the one before ended, None where there was none."""
        return self._call(SaveCommand())

    def finish_saving(self) -> SaveReport | None:
        """Wait for the checkpoint that is being written; how that ended, None where there is none."""
        return self._call(FinishSavingCommand())

    def connect(self, link: GeneratorLink) -> None:
        """From here on, `publish` sends weights over devices instead of writing them. The generators must be ready."""
        self._call(ConnectCommand(link=link))
        self._publish_command = SendWeightsCommand()

    def publish(self) -> PublishedWeights:
        """Write the current weights where generators find them, or send them there."""
        return self._call(self._publish_command)

    def export(self, directory: Path) -> None:
        """Write the current policy as a new Hugging Face folder."""
        self._call(ExportCommand(directory=str(directory.absolute()), dtype=self._folders.weights_dtype))

    def stop(self) -> None:
        """End the ranks."""
        self._call(StopCommand())
        self._running().wait(timeout_s=STOP_TIMEOUT_S)
        ray.kill(self._mailbox)

    def _new_mailbox(self) -> "ray.actor.ActorHandle":
        return ray.remote(Mailbox).options(num_cpus=0).remote(self._config.workers.num_workers)

    def _running(self) -> TrainGroup:
        if self._group is None:
            raise RaywardError("the learner was not started; call start() first")
        return self._group

    def _call(self, command: Command) -> Reply:
        """Ask the ranks. What they run in, and Ray Train beside them, is started anew where it is lost, as often as ranks are."""
        try:
            return self._ask(command)
        except ActorLostError as error:
            if self._num_restarts == self._config.workers.max_restarts:
                raise
            self._num_restarts += 1
            self._running().kill()
            ray.kill(self._mailbox)
            self._mailbox = self._new_mailbox()
            self.start()
            raise LearnerRestartedError(
                f"{str(error).splitlines()[0]}; it has started again from the newest checkpoint"
            ) from error

    def _ask(self, command: Command) -> Reply:
        group = self._running()
        pending = self._mailbox.send.remote(command)
        self._pending = (Pending(whom="the learner's ranks", what=type(command).__name__, since_s=time.monotonic()),)
        ray.wait([pending, group.end], num_returns=1)
        self._pending = ()
        has_ended = group.has_ended()  # then nobody answers any more, but what was said before comes first
        try:
            answer: Answer = ray.get(pending, timeout=LAST_WORDS_S if has_ended else None)
        except (RayError, TimeoutError) as error:
            raise (group.failure() if has_ended else ActorLostError(f"the learner's mailbox was lost: {error}")) from error
        match answer:
            case Answer(outcome="lost"):
                raise LearnerRestartedError("the learner's ranks were lost and have started again from the newest checkpoint")
            case Answer(outcome="failed", reply=error):
                raise error
        return answer.reply
