"""Several raylets on this machine, as several nodes. They share its address and its shared memory."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

NUM_CPUS = 1  # of each node


@dataclass(frozen=True)
class TwoNodes:
    """The driver is on the first."""

    cluster: Cluster
    ids: tuple[str, ...]
    second: Any  # as `Cluster.remove_node` takes it


@pytest.fixture
def two_nodes(no_ray: None) -> Iterator[TwoNodes]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": NUM_CPUS, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=NUM_CPUS)
        environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}}  # workers must find the modules of tests
        ray.init(address=cluster.address, runtime_env=environment, log_to_driver=False, configure_logging=False)
        yield TwoNodes(cluster=cluster, ids=(cluster.head_node.node_id, second.node_id), second=second)
    finally:
        ray.shutdown()
        cluster.shutdown()
