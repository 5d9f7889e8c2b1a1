"""Weights that were published on one node reach generators of another, whole, once a node, and leave nothing old behind."""

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.errors import ConfigError, WeightMismatchError, WeightsLostError
from cluster.processes.hosts import weights as module
from cluster.processes.hosts.folder import host_folder, this_node
from cluster.processes.hosts.weights import check_shared_memory_of_nodes, weights_here
from cluster.storage.weight_file import remove_earlier_versions, seal_weights
from cluster.types import WeightFile
from tests.ray_nodes import TwoNodes, two_nodes

__all__ = ["two_nodes"]  # a fixture

pytestmark = pytest.mark.cold_start

NUM_BYTES = 3 * 1000 + 17  # of pieces of 1000
WeightsHere = Callable[[WeightFile], WeightFile]


class Host:
    """Stands for whatever of a run works on one node. An actor."""

    def __init__(self, run_folder: Path) -> None:
        self._run_folder = run_folder
        self._fetched: list[int] = []
        module.PIECE_BYTES, module.LOST_PAUSE_S = 1000, 0.0
        pieces = module._pieces

        def counted(weights: WeightFile) -> Any:
            self._fetched.append(weights.policy_version)
            return pieces(weights)

        module._pieces = counted

    def publish(self, version: int) -> WeightFile:
        folder, started_s = host_folder(self._run_folder), time.time()
        partial = folder / "partial"
        partial.write_bytes(np.random.default_rng(version).bytes(NUM_BYTES))
        weights = seal_weights(
            partial, folder / f"policy-v{version:06d}.safetensors", policy_version=version, node_id=this_node()
        )
        remove_earlier_versions(folder, before_s=started_s)
        return weights

    def load(self, weights: WeightFile) -> tuple[WeightFile, str, int]:
        """The file of this node, the checksum of its bytes, and how many fetches this process has made."""
        here = weights_here(weights)
        return here, hashlib.sha256(Path(here.path).read_bytes()).hexdigest(), len(self._fetched)


def on_node(nodes: TwoNodes, number: int, run_folder: Path) -> Any:
    where = NodeAffinitySchedulingStrategy(nodes.ids[number], soft=False)
    return ray.remote(Host).options(num_cpus=0, scheduling_strategy=where).remote(run_folder)


def versions_in(folder: Path) -> list[str]:
    return sorted(path.name.partition(".")[0] for path in folder.iterdir() if "policy" in path.name)


def test_another_node_fetches_once_and_keeps_the_newest(two_nodes: TwoNodes, tmp_path: Path) -> None:
    learner, *generators = (on_node(two_nodes, number, tmp_path) for number in (0, 1, 1))
    neighbour = on_node(two_nodes, 0, tmp_path)
    for version in (1, 2):
        published = ray.get(learner.publish.remote(version))
        loaded = ray.get([generator.load.remote(published) for generator in generators])
        assert [checksum for _, checksum, _ in loaded] == [published.checksum] * 2
        assert {here.path for here, _, _ in loaded} == {loaded[0][0].path}
        assert loaded[0][0].path != published.path
        assert {(here.policy_version, here.node_id) for here, _, _ in loaded} == {(version, two_nodes.ids[1])}
        assert sum(fetches for _, _, fetches in loaded) == version  # of both generators together
        assert len(set(versions_in(tmp_path / two_nodes.ids[1]))) == 1
        here, _, fetches = ray.get(neighbour.load.remote(published))
        assert (here, fetches) == (published, 0)  # mapped where the learner wrote it
    replacement = on_node(two_nodes, 1, tmp_path)
    assert ray.get(replacement.load.remote(published))[1:] == (published.checksum, 0)
    Path(loaded[0][0].path).unlink()  # as a learner does that has come to the host
    assert ray.get(replacement.load.remote(published))[1:] == (published.checksum, 1)


def test_what_is_no_longer_there_is_lost(two_nodes: TwoNodes, tmp_path: Path) -> None:
    learner, generator = (on_node(two_nodes, number, tmp_path) for number in (0, 1))
    first = ray.get(learner.publish.remote(1))
    ray.get(learner.publish.remote(2))
    with pytest.raises(WeightsLostError, match="version 1 cannot be had from node"):
        ray.get(generator.load.remote(first))
    nowhere = replace(first, node_id="1" * len(first.node_id))
    with pytest.raises(WeightsLostError, match="version 1 cannot be had from node 1111"):
        ray.get(generator.load.remote(nowhere))


def test_other_bytes_than_were_published_are_refused(two_nodes: TwoNodes, tmp_path: Path) -> None:
    learner, generator = (on_node(two_nodes, number, tmp_path) for number in (0, 1))
    published = ray.get(learner.publish.remote(1))
    with pytest.raises(WeightMismatchError, match=f"came from node {two_nodes.ids[0]} with sha256 {published.checksum}, but was"):
        ray.get(generator.load.remote(replace(published, checksum="0" * 64)))
    assert versions_in(tmp_path / two_nodes.ids[1]) == []
    assert ray.get(generator.load.remote(published))[1] == published.checksum


def test_shared_memory_is_looked_at_on_every_node(two_nodes: TwoNodes, tmp_path: Path) -> None:
    free = os.statvfs(tmp_path)
    check_shared_memory_of_nodes(1, tmp_path)
    with pytest.raises(ConfigError) as refused:
        check_shared_memory_of_nodes(2 * free.f_blocks * free.f_frsize, tmp_path)
    assert len(refused.value.problems) == 2
    assert all("MiB free" in problem for problem in refused.value.problems)
