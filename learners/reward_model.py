"""Training a reward model, as the driver sees it: one call that runs a Ray Train group to its end and reports each step."""

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.util.queue import Queue

from cluster.errors import DataError, RaywardError
from learners.learner_config import RewardModelLearnerConfig
from learners.train_handle import TRAIN_ENVIRONMENT

if TYPE_CHECKING:
    from learners.preference import RewardModelLearner

StepCallback = Callable[[int, int, Mapping[str, float]], None]  # (steps completed, all steps, metrics)


@dataclass(frozen=True, slots=True, kw_only=True)
class RatedTexts:
    """Texts that people graded. Produced by the composition root, consumed by `RewardModelLearner`."""

    token_ids: tuple[tuple[int, ...], ...]  # by `actors.reward_head.encode_texts`
    ratings: tuple[float, ...]  # mean over people, any unit

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.ratings):
            raise DataError(f"{len(self.token_ids)} texts but {len(self.ratings)} ratings; give one mean rating a text")


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedTexts:
    """Held-out texts with their comparisons. Produced by the composition root, consumed by `RewardModelLearner`."""

    token_ids: tuple[tuple[int, ...], ...]
    pairs: tuple[tuple[int, int], ...]  # (better, worse) places in `token_ids`

    def __post_init__(self) -> None:
        if not self.pairs:
            raise DataError("no held-out pairs to measure a reward model's accuracy on; give at least one")


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelJob:
    """All that the ranks need. Produced by the composition root, consumed by `train_reward_model`."""

    model_path: str  # Hugging Face folder whose trunk is the start
    train: RatedTexts
    held_out: ComparedTexts
    config: RewardModelLearnerConfig
    seed: int
    output_dir: Path  # must not exist; a Hugging Face folder afterwards


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelResult:
    """What came of a training. Produced by rank 0, consumed by the composition root."""

    accuracy: float  # share of held-out pairs in the order of their ratings, 0..1
    num_pairs: int
    num_steps: int
    num_texts: int  # trained on, each pass counted
    train_s: float
    evaluate_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _StepReport:
    step: int  # completed
    num_steps: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class _GroupEnded:
    error: BaseException | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _LoopSetup:
    job: Any  # ObjectRef of a RewardModelJob
    reports: Queue


def train_reward_model(job: RewardModelJob, *, storage_path: Path, on_step: StepCallback) -> RewardModelResult:
    """Train, measure, normalise, write `job.output_dir`. `storage_path` is for Ray Train's own records.

    `on_step` is called in this thread. Ray must be running; the group's resources are free again on return.
    """
    for name, value in TRAIN_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    reports = Queue(actor_options={"num_cpus": 0})
    setup = _LoopSetup(job=ray.put(job), reports=reports)
    # A thread, because `fit` blocks until the ranks end; a daemon, so that Ctrl-C ends the driver and not only the wait.
    abandoned = threading.Event()
    thread = threading.Thread(target=_fit, args=(setup, job.config, storage_path, abandoned), name="ray-train-fit", daemon=True)
    thread.start()
    try:
        while isinstance(report := reports.get(), _StepReport):
            on_step(report.step, report.num_steps, report.metrics)
        thread.join()
    finally:
        abandoned.set()
        reports.shutdown(force=True)
    if isinstance(report, _GroupEnded):
        raise _explained(report.error)
    return report


def train_loop_per_worker(loop_config: dict[str, _LoopSetup]) -> None:
    """Ray Train's entry point, on every rank; rank 0 reports and writes."""
    from learners.preference import RewardModelLearner

    setup = loop_config["setup"]
    job: RewardModelJob = ray.get(setup.job)
    context = ray.train.get_context()
    rank = context.get_world_rank()
    learner = RewardModelLearner(job, rank=rank, world_size=context.get_world_size())
    result = _run(learner, job, report=setup.reports.put if rank == 0 else lambda report: None)
    if rank == 0:
        learner.export()
        setup.reports.put(result)


def _run(learner: "RewardModelLearner", job: RewardModelJob, *, report: Callable[[_StepReport], None]) -> RewardModelResult:
    started_s = time.monotonic()
    for step, batch in enumerate(learner.batches(), start=1):
        report(_StepReport(step=step, num_steps=learner.num_steps, metrics=learner.update(batch)))
    trained_s = time.monotonic()
    accuracy = learner.accuracy()
    learner.normalise()
    return RewardModelResult(
        accuracy=accuracy,
        num_pairs=len(job.held_out.pairs),
        num_steps=learner.num_steps,
        num_texts=learner.num_steps * job.config.batch_size,
        train_s=trained_s - started_s,
        evaluate_s=time.monotonic() - trained_s,
    )


def _fit(setup: _LoopSetup, config: RewardModelLearnerConfig, storage_path: Path, abandoned: threading.Event) -> None:
    """Run the group; say when it has ended, in case no result came."""
    error: BaseException | None = None
    try:
        _trainer(setup, config, storage_path).fit()
    # Whatever ended the group must reach the caller that waits for a report, and a thread has no other way out.
    except BaseException as caught:  # noqa: BLE001
        error = caught
    if not abandoned.is_set():  # else Ray may be gone by now, and a call into it would end this process without a word
        setup.reports.put(_GroupEnded(error=error))


def _trainer(setup: _LoopSetup, config: RewardModelLearnerConfig, storage_path: Path) -> "ray.train.torch.TorchTrainer":
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    workers = config.workers
    use_gpu = workers.num_gpus > 0
    resources = {"CPU": workers.num_cpus} | ({"GPU": workers.num_gpus} if use_gpu else {})
    return TorchTrainer(
        train_loop_per_worker,
        train_loop_config={"setup": setup},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers.num_workers, use_gpu=use_gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name="reward_model", storage_path=str(storage_path.absolute()), failure_config=FailureConfig(max_failures=0)
        ),
    )


def _explained(error: BaseException | None) -> RaywardError:
    """The first failing rank's own error, without Ray Train's frame around it."""
    from ray.train import WorkerGroupError

    if isinstance(error, WorkerGroupError) and error.worker_failures:
        rank, failure = min(error.worker_failures.items())
        if isinstance(failure, RaywardError):
            return failure
        return RaywardError(f"the reward-model learner stopped: rank {rank}: {type(failure).__name__}: {failure}")
    return RaywardError(f"the reward-model learner stopped without a result: {error!r}")
