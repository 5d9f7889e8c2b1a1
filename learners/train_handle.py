"""The learner as the driver sees it: a Ray Train group behind plain calls."""

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import ray
from ray.exceptions import RayError

from actors.config import DType
from cluster.errors import RaywardError
from cluster.types import PublishedWeights, ScoredBatch, Trajectory, UpdateResult
from learners.policy_config import PolicyLearnerConfig
from learners.mailbox import (
    Command,
    ConnectCommand,
    ExportCommand,
    GeneratorLink,
    LearnerFailure,
    LogprobsCommand,
    Mailbox,
    PublishCommand,
    ReadyCommand,
    ReferenceKLCommand,
    Reply,
    SendWeightsCommand,
    StartingPoint,
    StopCommand,
    UpdateCommand,
)

logger = logging.getLogger(__name__)

TRAIN_ENVIRONMENT: Mapping[str, str] = {
    "RAY_TRAIN_METRICS_ENABLED": "0",  # needs a metrics agent; ours are in metrics.jsonl
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # how soon a rank's failure is seen
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
"""Defaults for Ray Train, read in this process; a value that the user has set stays."""

STOP_TIMEOUT_S = 60.0  # for ranks to leave after StopCommand; the end of Ray ends them in any case
ABANDON_TIMEOUT_S = 3.0  # the same when a run ends with an error; a rank in the middle of an update is not waited for


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerFolders:
    """Where a learner writes. Produced by the composition root, consumed by `LearnerHandle`."""

    storage: Path  # Ray Train's own records
    weights: Path  # published weights, in shared memory of the generators' host
    weights_dtype: DType  # of published and exported weights: what generators compute in


class LearnerHandle:
    """Starts the ranks, hands them commands one at a time, and says why they ended if they do. A context manager."""

    def __init__(self, start: StartingPoint, config: PolicyLearnerConfig, folders: LearnerFolders) -> None:
        self._start = start
        self._config = config
        self._folders = folders
        self._publish_command: Command = PublishCommand(directory=str(folders.weights.absolute()), dtype=folders.weights_dtype)
        self._mailbox = ray.remote(Mailbox).options(num_cpus=0).remote(config.workers.num_workers)
        self._thread = threading.Thread(target=self._fit, name="ray-train-fit", daemon=True)
        self._abandoned = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is None:
            self.stop()
        else:
            # The error that is on its way says more than a failure to stop. Without a mailbox the ranks end by themselves.
            self._abandoned.set()
            ray.kill(self._mailbox)
            self._thread.join(timeout=ABANDON_TIMEOUT_S)

    def start(self) -> None:
        """Start the ranks; returns when all have loaded their models."""
        for name, value in TRAIN_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self._thread.start()
        self._call(ReadyCommand())

    def submit(self, batch: ScoredBatch) -> UpdateResult:
        """Train on one batch."""
        return self._call(UpdateCommand(batch=ray.put(batch)))

    def completion_logprobs(self, trajectories: Sequence[Trajectory]) -> tuple[tuple[float, ...], ...]:
        """Log-probability of each completion token, in nats, under the current policy."""
        return self._call(LogprobsCommand(trajectories=ray.put(list(trajectories))))

    def reference_kl(self, trajectories: Sequence[Trajectory]) -> tuple[float, ...]:
        """log(policy / reference) summed over each completion, in nats."""
        return self._call(ReferenceKLCommand(trajectories=ray.put(list(trajectories))))

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
        self._thread.join(timeout=STOP_TIMEOUT_S)
        ray.kill(self._mailbox)

    def _call(self, command: Command) -> Reply:
        try:
            reply = ray.get(self._mailbox.send.remote(command))
        except RayError as error:
            raise RaywardError(f"the learner's mailbox was lost: {error}") from error
        if isinstance(reply, LearnerFailure):
            raise RaywardError(f"the learner stopped: {reply.cause}")
        return reply

    def _fit(self) -> None:
        """Runs in its own thread, because Ray Train's `fit` blocks until the ranks end."""
        cause = "its ranks have left; no command can follow stop()"
        try:
            self._trainer().fit()
        # Whatever ended the group must reach the caller that waits for a reply, and a thread has no other way out.
        except BaseException as error:
            logger.exception("Ray Train ended with an error")
            cause = _cause(error)
        if self._abandoned.is_set():
            return  # Ray may be gone by now, and a call into it would end this process without a word
        try:
            ray.get(self._mailbox.close.remote(cause))
        except RayError:
            logger.info("the mailbox was gone before the learner's end could be told")

    def _trainer(self) -> "ray.train.torch.TorchTrainer":
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        from learners.train_loop import LoopSetup, train_loop_per_worker

        workers = self._config.workers
        use_gpu = workers.num_gpus > 0
        resources = {"CPU": workers.num_cpus} | ({"GPU": workers.num_gpus} if use_gpu else {})
        setup = LoopSetup(start=self._start, config=self._config, mailbox=self._mailbox)
        return TorchTrainer(
            train_loop_per_worker,
            train_loop_config={"setup": setup},
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
            scaling_config=ScalingConfig(num_workers=workers.num_workers, use_gpu=use_gpu, resources_per_worker=resources),
            # A restarted rank would hold the start weights again: without a checkpoint a restart is a silent loss.
            run_config=RunConfig(
                name="learner", storage_path=str(self._folders.storage.absolute()), failure_config=FailureConfig(max_failures=0)
            ),
        )


def _cause(error: BaseException) -> str:
    """The first failing rank's own last words, without Ray Train's frame around them."""
    from ray.train import WorkerGroupError

    if isinstance(error, WorkerGroupError) and error.worker_failures:
        rank, failure = min(error.worker_failures.items())
        return f"rank {rank}: {type(failure).__name__}: {failure}"
    return f"{type(error).__name__}: {error}"
