"""A Ray Train group as the driver sees it: started, waited for and ended.

Ray Train's `fit` blocks until its ranks end. It runs in a Ray task of its own and not in a thread of the driver: Ctrl-C
then stops the driver's waiting alone, and no thread is left inside a call to Ray when Ray shuts down.
"""

from typing import Self

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.errors import ActorLostError, RaywardError
from cluster.processes.hosts.folder import this_node
from cluster.processes.reservations.seats import SEAT_PREFIX
from learners.ranks.loss import said_of_a_rank
from learners.ranks.plan import GroupPlan, resources_of_a_rank


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
        bundle, job = resources_of_a_rank(self._workers), ray.get_runtime_context().get_job_id()
        for name, reservation in placement_group_table().items():
            is_seat = reservation["name"].startswith(SEAT_PREFIX)
            is_ours = name.endswith(job) and list(reservation["bundles"].values()) == [bundle] * self._workers.num_workers
            if name not in self._earlier_reservations and is_ours and not is_seat and reservation["state"] != "REMOVED":
                remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(name)))

    def _error(self) -> RaywardError | None:
        try:
            return ray.get(self.end)
        except ray.exceptions.RayError as error:
            return ActorLostError(f"the {self._name} stopped: the process that ran Ray Train was lost: {said_of_a_rank(error)}")


def _fit(plan: GroupPlan) -> RaywardError | None:
    """In a process of its own."""
    from learners.ranks.trainer import fit

    return fit(plan)
