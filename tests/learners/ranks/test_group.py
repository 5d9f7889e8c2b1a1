"""What a group of ranks gives back when it is killed."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
from ray.util.placement_group import placement_group, placement_group_table

from learners.ranks.group import GroupPlan, TrainGroup, build_trainer
from learners.settings.training import WorkerConfig

ANOTHER_DRIVER = """
import sys
import ray
from ray.util.placement_group import placement_group

ray.init(address=sys.argv[1], log_to_driver=False)
reservation = placement_group([{"CPU": 0.5}])
ray.get(reservation.ready())
print(reservation.id.hex(), flush=True)
sys.stdin.read()
"""


def _sleep() -> None:
    time.sleep(600)


@pytest.mark.usefixtures("local_ray")
def test_a_killed_group_leaves_the_equal_reservation_of_another_job(tmp_path: Path) -> None:
    address = ray.get_runtime_context().gcs_address
    with subprocess.Popen(
        [sys.executable, "-c", ANOTHER_DRIVER, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as another:
        assert another.stdout is not None
        theirs = another.stdout.readline().strip()
        ours = placement_group([{"CPU": 0.5}])
        ray.get(ours.ready())
        fit = ray.remote(_sleep).options(num_cpus=0, max_retries=0).remote()
        workers = WorkerConfig(num_workers=1, num_cpus=0.5)
        plan = GroupPlan(name="ranks", train_loop=print, setup=None, workers=workers, storage=tmp_path, max_restarts=0)
        TrainGroup(plan, fit, earlier_reservations=set()).kill()
        states = {name: reservation["state"] for name, reservation in placement_group_table().items()}
        assert (states[ours.id.hex()], states[theirs]) == ("REMOVED", "CREATED")


def test_neither_lost_ranks_nor_a_group_that_cannot_start_are_tried_for_ever(tmp_path: Path) -> None:
    workers = WorkerConfig(num_workers=1, num_cpus=0.5)
    plan = GroupPlan(name="ranks", train_loop=print, setup=None, workers=workers, storage=tmp_path, max_restarts=2)
    failures = build_trainer(plan).run_config.failure_config
    assert (failures.max_failures, failures.controller_failure_limit) == (2, 2)
