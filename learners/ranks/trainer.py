"""Ray Train's trainer of a group, and its `fit`.

Imported where that runs and not by the driver, for which it would be a second and a hundred megabytes.
"""

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayError
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, UserCallback, WorkerGroupError

from cluster.errors import ActorLostError, ConfigError, DataError, RaywardError
from cluster.processes.collector_pause import collector_paused
from cluster.processes.losses import Outcome, outcome_of
from learners.ranks.loss import first_cause, said_of_a_rank
from learners.ranks.plan import GroupPlan, resources_of_a_rank
from learners.settings.training import WorkerConfig

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

TRAIN_ENVIRONMENT: Mapping[str, str] = {
    "RAY_TRAIN_METRICS_ENABLED": "0",  # needs a metrics agent; ours are in metrics.jsonl
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon a rank's failure is seen
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",  # a rank whose process stands still is lost, after 600 s by Ray's own choice
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process more, for clouds that announce the end of a node
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
"""Defaults for Ray Train, read where `fit` runs; a value that the user has set stays."""

KEEP_FREED_MEMORY: Mapping[str, str] = {
    "MALLOC_ARENA_MAX": "1",  # else Ray Train's thread has one of its own, which gives back whatever is free
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
"""Of glibc's mallopt(3), for ranks that hold a whole model in host memory. Left alone, glibc gives large tensors back to the
system and takes new pages for the next, 400,000 of them in an update of SmolLM2-135M. A value that the user has set stays."""

START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"  # 60 s by Ray's own choice, also where a lost node is to be replaced


def fit(plan: GroupPlan) -> RaywardError | None:
    """Run the ranks to their end; returns what ended them."""
    start = {START_TIMEOUT: f"{plan.workers.start_deadline_s:g}"}
    for name, value in {**TRAIN_ENVIRONMENT, **start}.items():
        os.environ.setdefault(name, value)
    try:
        build_trainer(plan).fit()
    # Whatever ended the group is the caller's to know, as a value: Ray would wrap it, and not every error can be pickled.
    except Exception as error:  # noqa: BLE001
        return _explained(plan.name, error)
    return None


def build_trainer(plan: GroupPlan) -> "TorchTrainer":
    """Ray Train's own trainer. Losses are limited, also those of groups that never came up: Ray Train would try for ever."""
    with collector_paused():
        from ray.train.torch import TorchConfig, TorchTrainer

    workers = plan.workers
    return TorchTrainer(
        plan.train_loop,
        train_loop_config={"setup": plan.setup},
        torch_config=TorchConfig(backend=_backend(workers)),
        scaling_config=ScalingConfig(
            num_workers=workers.num_workers,
            use_gpu=workers.num_gpus > 0,
            resources_per_worker=resources_of_a_rank(workers),
        ),
        run_config=RunConfig(
            name=plan.name,
            storage_path=str(plan.storage.absolute()),
            failure_config=FailureConfig(max_failures=plan.max_restarts, controller_failure_limit=plan.max_restarts),
            callbacks=[_LossTeller(plan.tell)],
            worker_runtime_env={"env_vars": _environment(workers)},
        ),
    )


def _environment(workers: WorkerConfig) -> dict[str, str]:
    """Of the processes of ranks. Shards give memory back by themselves: `learners.network.sharding`."""
    if workers.num_gpus > 0 or workers.sharding != "none":
        return {}
    return {name: value for name, value in KEEP_FREED_MEMORY.items() if name not in os.environ}


def _backend(workers: WorkerConfig) -> str:
    """Of torch's process group. Parts in host memory are gathered for files and norms there, which NCCL cannot."""
    if workers.num_gpus == 0:
        return "gloo"
    return "nccl" if workers.offload == "none" else "cpu:gloo,cuda:nccl"


class _LossTeller(UserCallback):
    """Ray Train's controller alone learns how a rank ended."""

    def __init__(self, tell: Callable[[str], object]) -> None:
        self._tell = tell

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        rank, error = first_cause(worker_exceptions)
        self._tell(f"rank {rank}: {said_of_a_rank(error).splitlines()[0]}")


def _explained(name: str, error: Exception) -> RaywardError:
    """The words of the rank that failed first, without Ray Train's frame around them; what the user must fix stays as it is."""
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        rank, failure = first_cause(error.worker_failures)
        if isinstance(failure, ConfigError | DataError):
            return failure
        return RaywardError(f"the {name} stopped: rank {rank}: {said_of_a_rank(failure)}")
    if isinstance(error, ControllerError):
        error = error.controller_failure
    if isinstance(error, RayError) and outcome_of(error) is Outcome.LOST:
        return ActorLostError(
            f"the {name} stopped: Ray Train's controller or a rank that it started was lost: {said_of_a_rank(error)}"
        )
    return RaywardError(f"the {name} stopped: {said_of_a_rank(error)}")
