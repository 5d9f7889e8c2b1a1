"""Where the actors of a policy run sit, reserved before any of them starts."""

from collections.abc import Callable

from actors.config import GeneratorConfig
from actors.generation.rollout_pool import generator_name
from actors.scoring.stage import scorer_seats
from cluster.processes.placement import Seat, seat_of
from cluster.processes.reservations.seats import Seats
from learners.run.plan import role_requests
from learners.run.session import Session
from learners.settings.run import PolicyRunConfig
from learners.settings.training import WorkerConfig

LEARNER = "the learner's ranks"


def seats_at_start(config: PolicyRunConfig) -> dict[str, Seat]:
    """By the names of actors. That of the learner is for all ranks, which may be on several nodes."""
    learner, *_ = role_requests(config)
    generators = {
        generator_name(kind.name, index): generator_seat(kind)
        for kind in config.generator_kinds
        for index in range(kind.num_replicas)
    }
    return {LEARNER: [*learner.seat] * learner.count, **generators, **scorer_seats(config.scorers)}


def generator_seat(kind: GeneratorConfig) -> Seat:
    """Of each engine of a kind."""
    return seat_of(kind.num_cpus, kind.num_gpus, kind.num_parts)


def wait_for_ranks(session: Session, workers: WorkerConfig) -> None:
    """Return once there is room for all ranks of a learner that has the cluster to itself.

    Ray Train would give up at once where the cluster is too small yet. Raises `RaywardError` where there is no room in time.
    """
    seats = Seats(session.view.note)
    ranks = [*seat_of(workers.num_cpus, workers.num_gpus)] * workers.num_workers
    try:
        seats.reserve({LEARNER: ranks}, deadline_s=max(workers.start_deadline_s, session.wait_for_nodes_s))
    finally:
        seats.close()


def reserved_seats(config: PolicyRunConfig, *, note: Callable[[str], None]) -> Seats:
    """All that the run starts with; its learner's are free for Ray Train, which reserves them again for itself.

    Raises `RaywardError` where the cluster has no room in time.
    """
    seats = Seats(note)
    deadline_s = max(config.supervision.start_deadline_s, config.wait_for_nodes_s)
    try:
        seats.reserve(seats_at_start(config), deadline_s=deadline_s)
    except BaseException:
        seats.close()
        raise
    return seats
