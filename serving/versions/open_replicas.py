"""Requests go to replicas that take them now, and not to one that is shut for a change of weights.

A replica says in its routing stats that it is about to change, waits until the controller has passed that on, and shuts then.
Where all change, or a request was on its way already, it waits at that replica's gate.
"""

import random
from typing import Final

from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica

IS_CHANGING: Final = "is_changing"  # key of the routing stats
STATS_PERIOD_S: Final = 1.0  # in which the controller asks each replica; Serve's default of 10 s would hold up each change
NUM_CHOICES: Final = 2  # of these, the base class takes the one with fewer requests


class OpenReplicasRouter(FIFOMixin, RequestRouter):
    """Serve's own choice, the less busy one of two, among the replicas that are not about to change."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """One rank of at most two candidates."""
        candidates = [replica for replica in candidate_replicas if not replica.routing_stats.get(IS_CHANGING)]
        candidates = candidates or candidate_replicas
        return [random.sample(candidates, min(NUM_CHOICES, len(candidates)))]
