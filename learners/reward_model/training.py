"""Training a reward model, as the driver sees it: one call that runs a Ray Train group to its end and reports each step."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.util.queue import Empty, Queue

from cluster.errors import ActorLostError, CannotResumeError, ConfigError, DataError, RaywardError
from cluster.processes.collector_pause import collector_paused
from cluster.processes.supervision import not_started
from learners.ranks.group import TrainGroup
from learners.ranks.plan import GroupPlan
from learners.reward_model.records import RewardModelJob, RewardModelResult

if TYPE_CHECKING:
    from learners.ranks.checkpoint import CheckpointWriter
    from learners.reward_model.learner import RewardModelLearner

logger = logging.getLogger(__name__)

REPORT_TIMEOUT_S = 1.0  # after so long without a report, look whether the ranks are still there

StepCallback = Callable[[int, int, Mapping[str, float]], None]  # (steps completed, all steps, metrics)


@dataclass(frozen=True, slots=True, kw_only=True)
class _StepReport:
    step: int  # completed
    num_steps: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _Loaded:
    """The ranks hold their models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _LoopSetup:
    job: Any  # ObjectRef of a RewardModelJob
    reports: Queue


def train_reward_model(job: RewardModelJob, *, storage_path: Path, on_step: StepCallback) -> RewardModelResult:
    """Train, measure, normalise, write `job.output_dir`. `storage_path` is for Ray Train's own records.

    `on_step` is called in this thread. Ray must be running; the group's resources are free again on return. Raises
    `ActorLostError` where the ranks have not loaded their models in time.
    """
    reports = Queue(actor_options={"num_cpus": 0})
    group = TrainGroup.start(
        GroupPlan(
            name="reward-model-learner",
            train_loop=train_loop_per_worker,
            setup=_LoopSetup(job=ray.put(job), reports=reports),
            workers=job.config.workers,
            storage=storage_path,
            max_restarts=job.config.workers.max_restarts,
            tell=logger.warning,
        )
    )
    try:
        report = _next_report(reports, group, start_deadline_s=job.config.workers.start_deadline_s)
        while isinstance(report, _Loaded | _StepReport):
            if isinstance(report, _StepReport):
                on_step(report.step, report.num_steps, report.metrics)
            report = _next_report(reports, group)
        if isinstance(report, RaywardError):
            raise report
        group.wait()
    except BaseException:
        group.kill()
        raise
    finally:
        reports.shutdown(force=True)
    return report


def _next_report(
    reports: Queue, group: TrainGroup, *, start_deadline_s: float | None = None
) -> _Loaded | _StepReport | RewardModelResult | RaywardError:
    """Wait for rank 0; raises where the ranks have ended without another word, or said none until the deadline."""
    over_s = math.inf if start_deadline_s is None else time.monotonic() + start_deadline_s
    while True:
        if start_deadline_s is not None and time.monotonic() > over_s:
            reason = not_started(start_deadline_s, setting="learner.workers.start_deadline_s")
            raise ActorLostError(f"the reward-model learner has not come: {reason}")
        has_ended = group.has_ended()  # asked first, so that nothing put before the end is missed
        try:
            return reports.get(timeout=REPORT_TIMEOUT_S)
        except Empty:
            if has_ended:
                raise group.failure() from None


def train_loop_per_worker(loop_config: dict[str, _LoopSetup]) -> None:
    """Ray Train's entry point, on every rank; rank 0 reports and writes.

    Where a rank dies or raises, Ray Train starts all ranks anew. What a restart would only repeat is reported instead.
    """
    setup = loop_config["setup"]
    try:
        _learn(setup)
    except (ConfigError, DataError, CannotResumeError) as error:
        setup.reports.put(error)


def _learn(setup: _LoopSetup) -> None:
    from ray.train import get_context  # a second, which the driver need not wait for

    job: RewardModelJob = ray.get(setup.job)
    context = get_context()
    rank = context.get_world_rank()
    world_size = context.get_world_size()
    with collector_paused():
        from learners.ranks.checkpoint import checkpoint_writer, restore_newest
        from learners.reward_model.learner import RewardModelLearner

        learner = RewardModelLearner(job, rank=rank, world_size=world_size)
    restore_newest(learner, job.checkpoints, rank=rank, world_size=world_size)
    writer = checkpoint_writer(job.checkpoints, learner.shard, rank=rank)
    if rank == 0:
        setup.reports.put(_Loaded())
    result = _run(learner, job, writer, report=setup.reports.put if rank == 0 else lambda report: None)
    learner.export()  # unless the ranks before these were lost just after they had written it
    if rank == 0:
        setup.reports.put(result)


def _run(
    learner: "RewardModelLearner",
    job: RewardModelJob,
    writer: "CheckpointWriter | None",
    *,
    report: Callable[[_StepReport], None],
) -> RewardModelResult:
    started_s = time.monotonic()
    for batch in learner.batches():
        metrics = learner.update(batch)
        step = learner.num_steps_done
        report(_StepReport(step=step, num_steps=learner.num_steps, metrics=metrics))
        if writer is not None and step % job.config.checkpoint_every_num_steps == 0:
            writer.begin(step, learner.snapshot(), policy_version=step)
    if writer is not None:
        writer.finish()
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
