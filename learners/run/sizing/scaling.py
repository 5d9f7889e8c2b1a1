"""How many generators and scorers a run has, looked at between steps: as many as it may have, and as the cluster has room for."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import ray

from actors.generation.rollout_pool import RolloutPool
from actors.scoring.stage import ScorerPools
from cluster.errors import ConfigError, DataError
from cluster.processes.placement import RoleRequest, place_on_nodes
from cluster.processes.runtime import cluster_nodes
from learners.run.composition import Roles
from learners.run.plan import role_requests
from learners.run.sizing.scale_request import scalable_roles, wanted_numbers
from learners.settings.run import PolicyRunConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Scalable:
    """A role whose number may change. Produced by `build_scaling`, consumed by `Scaling`."""

    name: str  # on the command line
    place: int  # among the requests of the run
    largest: int
    number: Callable[[], int]  # those on their way among them
    num_coming: Callable[[], int]
    resize: Callable[[int], None]


class Scaling:
    """For the driver's thread."""

    def __init__(self, run: Path, roles: list[Scalable], requests: list[RoleRequest], *, note: Callable[[str], None]) -> None:
        """`requests`: what the run asked of the cluster at its start."""
        self._run = run
        self._roles = roles
        self._requests = requests
        self._note = note
        self._last_said = ""

    def adjust(self) -> None:
        """Let go what is more than wanted, and start what is missing and finds room.

        Where the last ones of a role are still on their way, no more are started: what they take is not known yet.
        """
        try:
            wanted = wanted_numbers(self._run)
        except DataError as error:
            self._say(str(error))
            return
        for role in self._roles:
            number, target = role.number(), min(wanted.get(role.name, role.largest), role.largest)
            if number < target and not role.num_coming():
                target = number + self._num_that_fit(role, target - number)
                if target == number and role.name in wanted:
                    self._say(f"{role.name}: {wanted[role.name]} are wanted, and the cluster has no room for more than {number}")
            if target != number and not (target > number and role.num_coming()):
                self._note(f"{role.name}: {number} -> {target}")
                role.resize(target)
            self._requests[role.place] = replace(self._requests[role.place], count=role.number())

    def _num_that_fit(self, role: Scalable, most: int) -> int:
        """Beside what others use of the cluster, and each of them on one node."""
        available, request = ray.available_resources(), self._requests[role.place]
        for number in range(most, 0, -1):
            needs = {"CPU": number * request.num_cpus, "GPU": number * request.num_gpus}
            if all(available.get(kind, 0.0) + 1e-9 >= need for kind, need in needs.items()) and self._nodes_hold(role, number):
                return number
        return 0

    def _nodes_hold(self, role: Scalable, number: int) -> bool:
        requests = list(self._requests)
        requests[role.place] = replace(requests[role.place], count=role.number() + number)
        try:
            place_on_nodes(requests, cluster_nodes())
        except ConfigError:
            return False
        return True

    def _say(self, what: str) -> None:
        """Once, and not at every step."""
        if what != self._last_said:
            self._last_said = what
            self._note(what)


def build_scaling(run: Path, roles: Roles, config: PolicyRunConfig, *, note: Callable[[str], None]) -> Scaling:
    """For the generators and scorers of a run."""
    pools: list[tuple[str, RolloutPool | ScorerPools]] = [(kind.name, roles.rollouts) for kind in config.generator_kinds]
    pools += [(scorer.name, roles.scoring) for scorer in config.scorers]
    named = zip(scalable_roles(config).items(), pools, strict=True)
    scalable = [
        Scalable(
            name=name,
            place=place,
            largest=settings.largest,
            number=partial(pool.num_replicas, of_pool),
            num_coming=partial(pool.num_coming, of_pool),
            resize=partial(pool.resize, of_pool),
        )
        for place, ((name, settings), (of_pool, pool)) in enumerate(named, start=1)
    ]
    return Scaling(run, scalable, role_requests(config), note=note)
