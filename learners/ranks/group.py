"""A Ray Train group as the driver sees it: started, waited for, ended, and explained if it ends by itself.

Ray Train's `fit` blocks until its ranks end. It runs in a Ray task of its own and not in a thread of the driver: Ctrl-C
then stops the driver's waiting alone, and no thread is left inside a call to Ray when Ray shuts down.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import ray
from ray.train import UserCallback
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.errors import ActorLostError, ConfigError, DataError, RaywardError
from cluster.processes.collector_pause import collector_paused
from cluster.processes.hosts.folder import this_node
from cluster.processes.losses import is_out_of_memory, reason_of
from cluster.processes.reservations.seats import SEAT_PREFIX
from learners.settings.training import WorkerConfig

TRAIN_ENVIRONMENT: Mapping[str, str] = {
    "RAY_TRAIN_METRICS_ENABLED": "0",  # needs a metrics agent; ours are in metrics.jsonl
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon a rank's failure is seen
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",  # a rank whose process stands still is lost, after 600 s by Ray's own choice
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process more, for clouds that announce the end of a node
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
"""Defaults for Ray Train, read where `fit` runs; a value that the user has set stays."""


START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"  # 60 s by Ray's own choice, also where a lost node is to be replaced
FOUND_OF_A_RANK = "health_check_failure"  # in Ray Train's own error about a rank that does not answer: Ray's error
MEMORY_ADVICE = "lower micro_batch_tokens or logprob_chunk_tokens of learner.workers; `rayward plan` shows what each role takes"


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPlan:
    """What the ranks run and where. Produced by a learner's driver side, consumed by `TrainGroup`."""

    name: str  # of Ray Train's run, and in error messages
    train_loop: Callable[[dict[str, Any]], None]
    setup: Any  # reaches every rank as loop_config["setup"]
    workers: WorkerConfig
    storage: Path  # Ray Train's own records
    max_restarts: int  # of all ranks, after the loss of one; 0 where a restart would forget what was learned
    tell: Callable[[str], object]  # why ranks were lost, each time; called where Ray Train runs


class TrainGroup:
    """The running ranks of one plan. Made by `start`."""

    def __init__(self, plan: GroupPlan, end: "ray.ObjectRef[RaywardError | None]", earlier_reservations: set[str]) -> None:
        self._name = plan.name
        self._workers = plan.workers
        self.end = end  # ready once all ranks have left; for `ray.wait`
        self._earlier_reservations = earlier_reservations

    @classmethod
    def start(cls, plan: GroupPlan) -> Self:
        """Returns at once; whether the ranks come up shows in what they say, or in `end`."""
        here = NodeAffinitySchedulingStrategy(this_node(), soft=False)  # the driver's: if that node is lost, so is the run
        fit = ray.remote(_fit).options(num_cpus=0, max_retries=0, scheduling_strategy=here, name=f"ray train: {plan.name}")
        return cls(plan, fit.remote(plan), set(placement_group_table()))

    def has_ended(self) -> bool:
        """Whether all ranks have left."""
        ended, _ = ray.wait([self.end], timeout=0)
        return bool(ended)

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when all ranks have left, or after `timeout_s`; raises what ended them, if anything did."""
        ended, _ = ray.wait([self.end], timeout=timeout_s)
        if ended and (error := self._error()) is not None:
            raise error

    def failure(self) -> RaywardError:
        """Why no more will come from ranks that have left."""
        return self._error() or RaywardError(f"the {self._name} stopped: its ranks have left; no call can follow stop()")

    def kill(self) -> None:
        """End the ranks now, in the middle of whatever they do: Ray ends them with the process that started them."""
        ray.cancel(self.end, force=True)
        self._give_back_reservations()

    def _give_back_reservations(self) -> None:
        """What Ray Train reserved for the ranks stays reserved when its controller is killed.

        Its own cleaner asks Ray's state API about the controller, which answers nothing without a dashboard (seen with ray 2.60).
        A reservation's name ends with the job that made it; of this job's, ours is as large as our ranks, and was not there when
        the group was started.
        """
        bundle, job = _resources(self._workers), ray.get_runtime_context().get_job_id()
        for name, reservation in placement_group_table().items():
            is_seat = reservation["name"].startswith(SEAT_PREFIX)
            is_ours = name.endswith(job) and list(reservation["bundles"].values()) == [bundle] * self._workers.num_workers
            if name not in self._earlier_reservations and is_ours and not is_seat and reservation["state"] != "REMOVED":
                remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(name)))

    def _error(self) -> RaywardError | None:
        try:
            return ray.get(self.end)
        except ray.exceptions.RayError as error:
            return ActorLostError(f"the {self._name} stopped: the process that ran Ray Train was lost: {_said(error)}")


def _fit(plan: GroupPlan) -> RaywardError | None:
    """Run the ranks to their end, in a process of its own; returns what ended them."""
    start = {START_TIMEOUT: f"{plan.workers.start_deadline_s:g}"}
    for name, value in {**TRAIN_ENVIRONMENT, **start}.items():
        os.environ.setdefault(name, value)
    try:
        build_trainer(plan).fit()
    # Whatever ended the group is the caller's to know, as a value: Ray would wrap it, and not every error can be pickled.
    except Exception as error:  # noqa: BLE001
        return _explained(plan.name, error)
    return None


def build_trainer(plan: GroupPlan) -> "ray.train.torch.TorchTrainer":
    """Ray Train's own trainer. Losses are limited, also those of groups that never came up: Ray Train would try for ever."""
    with collector_paused():
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

    workers = plan.workers
    use_gpu = workers.num_gpus > 0
    return TorchTrainer(
        plan.train_loop,
        train_loop_config={"setup": plan.setup},
        torch_config=TorchConfig(backend=_backend(workers)),
        scaling_config=ScalingConfig(num_workers=workers.num_workers, use_gpu=use_gpu, resources_per_worker=_resources(workers)),
        run_config=RunConfig(
            name=plan.name,
            storage_path=str(plan.storage.absolute()),
            failure_config=FailureConfig(max_failures=plan.max_restarts, controller_failure_limit=plan.max_restarts),
            callbacks=[_LossTeller(plan.tell)],
        ),
    )


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
        rank, error = min(worker_exceptions.items())
        self._tell(f"rank {rank}: {_said(error).splitlines()[0]}")


def _resources(workers: WorkerConfig) -> dict[str, float]:
    """Of one rank."""
    return {"CPU": workers.num_cpus} | ({"GPU": workers.num_gpus} if workers.num_gpus > 0 else {})


def _explained(name: str, error: Exception) -> RaywardError:
    """The first failing rank's own words, without Ray Train's frame around them; what the user must mend stays as it is."""
    from ray.exceptions import RayActorError
    from ray.train import WorkerGroupError

    if isinstance(error, RayActorError):
        return ActorLostError(f"the {name} stopped: Ray Train's controller was lost: {reason_of(error)}")
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        rank, failure = min(error.worker_failures.items())
        if isinstance(failure, ConfigError | DataError):
            return failure
        return RaywardError(f"the {name} stopped: rank {rank}: {_said(failure)}")
    return RaywardError(f"the {name} stopped: {type(error).__name__}: {error}")


def _said(failure: Exception) -> str:
    """Of a rank, in words: Ray's own errors on one line, those of the rank's code whole."""
    from ray.exceptions import RayError

    failure = vars(failure).get(FOUND_OF_A_RANK, failure)
    if is_out_of_memory(failure):
        return f"{reason_of(failure)}; {MEMORY_ADVICE}"
    return reason_of(failure) if isinstance(failure, RayError) else f"{type(failure).__name__}: {failure}"
