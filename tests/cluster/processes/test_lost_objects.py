"""A node is lost, and with it what generators had put into its object store."""

import numpy as np
import pytest
import ray
from ray import ObjectRef
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.errors import SamplesLostError
from cluster.processes.object_store import StoredObject
from cluster.processes.pool import ActorPool
from tests.ray_nodes import TwoNodes, two_nodes

__all__ = ["two_nodes"]  # a fixture

pytestmark = pytest.mark.cold_start

LARGE = 1 << 20  # bytes: too much to travel with the answer


class Sampler:
    def sample(self) -> tuple[str, np.ndarray]:
        return "numbers", np.ones(LARGE, np.uint8)


class Judge:
    def score(self, stored: list[StoredObject[np.ndarray]]) -> int:
        return sum(int(each.fetch().sum()) for each in stored)


def test_samples_that_were_on_a_lost_node_are_named_as_lost_by_whoever_reads_them(two_nodes: TwoNodes) -> None:
    second = NodeAffinitySchedulingStrategy(two_nodes.ids[1], soft=False)
    sampler = ray.remote(Sampler).options(num_cpus=0, scheduling_strategy=second).remote()
    sample = sampler.sample.options(num_returns=2)
    numbers, kept_ref = sample.remote()
    kept: StoredObject[np.ndarray] = StoredObject(kept_ref)
    assert ray.get(numbers) == "numbers"
    assert kept.fetch().sum() == LARGE  # from here on it is on both nodes
    numbers, lost_ref = sample.remote()
    assert ray.get(numbers) == "numbers"
    two_nodes.cluster.remove_node(two_nodes.second, allow_graceful=False)
    lost: StoredObject[np.ndarray] = StoredObject(lost_ref)
    first = NodeAffinitySchedulingStrategy(two_nodes.ids[0], soft=False)  # Ray may not know yet that the other is gone
    judges = ActorPool({"judge": ray.remote(Judge).options(num_cpus=0, scheduling_strategy=first).remote()})

    def score(stored: StoredObject[np.ndarray]) -> "ObjectRef[int]":
        return judges.start("judge", lambda actor: actor.score.remote([stored]))

    ((_, outcome),) = judges.finished([score(lost)])
    assert isinstance(outcome, SamplesLostError)
    with pytest.raises(SamplesLostError, match="samples are lost with the node on which they lay: "):
        lost.fetch()
    ((_, outcome),) = judges.finished([score(kept)])
    assert outcome == LARGE
