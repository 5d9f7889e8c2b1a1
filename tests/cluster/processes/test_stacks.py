"""Stacks of a job's processes on every node of a cluster that was joined; two raylets on this machine."""

import sys
import threading
import time
from collections.abc import Iterator

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from cluster.processes import stacks
from cluster.processes.stacks import stacks_of_all_nodes

pytestmark = pytest.mark.cold_start


class Waiter:
    def pid(self) -> int:
        return psutil.Process().pid

    def waits_for_ever(self) -> None:
        time.sleep(600)


@pytest.fixture(scope="module")
def two_nodes(no_ray: None) -> Iterator[None]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1, resources={"second": 1})
    ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test file
    yield
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def waiter(two_nodes: None) -> "ray.actor.ActorHandle":
    """Busy on the second node, all of which is taken."""
    actor = ray.remote(num_cpus=1, resources={"second": 1})(Waiter).remote()
    ray.get(actor.pid.remote())
    actor.waits_for_ever.remote()
    return actor


def test_each_node_tells_what_its_processes_do(waiter: "ray.actor.ActorHandle") -> None:
    text = stacks_of_all_nodes(threading.Event())
    ids = [node["NodeID"] for node in ray.nodes()]
    parts = text.split("==== node ")
    driver, by_node = parts[0], {node_id: part for node_id in ids for part in parts[1:] if node_id in part.splitlines()[0]}
    assert driver.startswith(f"== pid {psutil.Process().pid}")
    assert len(by_node) == len(parts[1:]) == 2
    assert ["waits_for_ever" in by_node[node["NodeID"]] for node in ray.nodes()] == [
        "second" in node["Resources"] for node in ray.nodes()
    ]
    ray.kill(waiter)


def test_a_node_that_does_not_answer_is_named_and_the_others_are_shown(two_nodes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "NODE_TIMEOUT_S", 0.0)
    text = stacks_of_all_nodes(threading.Event())
    assert text.startswith(f"== pid {psutil.Process().pid}")
    assert text.count("(it has not answered; `ray stack` on that node shows them)") == 2
