"""What a Ray Train group is to run. Whoever plans one needs nothing of Ray Train."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learners.settings.training import WorkerConfig


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


def resources_of_a_rank(workers: WorkerConfig) -> dict[str, float]:
    """As Ray counts them."""
    return {"CPU": workers.num_cpus} | ({"GPU": workers.num_gpus} if workers.num_gpus > 0 else {})
