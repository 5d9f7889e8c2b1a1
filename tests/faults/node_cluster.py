"""Several raylets on this machine, as nodes that are lost and join; a run joins them as a job of a cluster would."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from cluster.processes.runtime import WORKER_ENVIRONMENT
from tests.faults.faulty_run import KINDS, FaultyRun


class NodeCluster:
    """A head without CPUs, where the driver is, and nodes of one CPU each: a generator and a rank find no room on one of them."""

    def __init__(self) -> None:
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self._nodes: dict[str, Any] = {self._cluster.head_node.node_id: self._cluster.head_node}  # by Ray's id
        self.environment = {"RAY_ADDRESS": self._cluster.address}

    def add_node(self) -> str:
        """Returns Ray's id of it."""
        node = self._cluster.add_node(num_cpus=1)
        self._nodes[node.node_id] = node
        return node.node_id

    def processes_on(self, node_id: str) -> list[psutil.Process]:
        """Its daemon, and all that descends from it."""
        socket = self._nodes[node_id].raylet_socket_name
        daemons = [each for each in psutil.process_iter() if f"--raylet_socket_name={socket}" in _command(each)]
        return [process for daemon in daemons for process in [daemon, *daemon.children(recursive=True)]]

    def processes_of_runs(self) -> list[psutil.Process]:
        """Those that hold a role, wherever they are. What Ray keeps for the next to come is the cluster's."""
        processes = [process for node_id in self._nodes for process in self.processes_on(node_id)]
        return [process for process in processes if " ".join(_command(process)).startswith(KINDS)]

    def node_of(self, kind: str) -> str | None:
        """The node on which a process of this kind runs; None where none does."""
        for node_id in self._nodes:
            if any(" ".join(_command(each)).startswith(kind) for each in self.processes_on(node_id)):
                return node_id
        return None

    def lose(self, node_id: str) -> None:
        """All of its processes at once, as when a machine goes."""
        processes = self.processes_on(node_id)
        for process in processes:
            with suppress(psutil.Error):
                process.kill()
        self._cluster.remove_node(self._nodes.pop(node_id), allow_graceful=False)

    def end(self) -> None:
        left = [process for node_id in self._nodes for process in self.processes_on(node_id)]
        self._cluster.shutdown()
        for process in left:
            with suppress(psutil.Error):
                process.kill()


class RunOnNodes(FaultyRun):
    """A run whose processes descend from the daemons of a cluster, and not from its driver."""

    def __init__(self, nodes: NodeCluster, folder: Path, name: str, *overrides: str) -> None:
        super().__init__(folder, name, *overrides, **nodes.environment)
        self._nodes = nodes

    def _others(self) -> list[psutil.Process]:
        return self._nodes.processes_of_runs()


@pytest.fixture
def node_cluster(no_ray: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[NodeCluster]:
    for name, value in WORKER_ENVIRONMENT.items():  # daemons pass it on
        monkeypatch.setenv(name, os.environ.get(name, value))
    cluster = NodeCluster()
    try:
        yield cluster
    finally:
        cluster.end()


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
