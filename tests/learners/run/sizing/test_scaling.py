"""Pools grow to what a run may have as far as the cluster has room, shrink when asked, and say why where they cannot."""

import json
from pathlib import Path

import pytest

from cluster.processes.placement import Machine, RoleRequest
from learners.run.sizing import scaling as module
from learners.run.sizing.scale_request import SCALE_NAME
from learners.run.sizing.scaling import Scalable, Scaling


class Pool:
    """Of generators; `come` lets those on their way join."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.num_coming = 0
        self.resized: list[int] = []

    def resize(self, number: int) -> None:
        self.num_coming += max(0, number - self.number)
        self.number = number
        self.resized.append(number)

    def come(self) -> None:
        self.num_coming = 0


class Cluster:
    """What Ray says of nodes; generators take one CPU each, the learner one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *nodes: float, used: float) -> None:
        self.nodes, self.used = list(nodes), used
        monkeypatch.setattr(module.ray, "available_resources", lambda: {"CPU": sum(self.nodes) - self.used})
        monkeypatch.setattr(module, "cluster_nodes", lambda: [Machine(num_cpus=node, num_gpus=0) for node in self.nodes])


def scaling_of(run: Path, pool: Pool, notes: list[str], *, largest: int, num_cpus: float = 1.0) -> Scaling:
    scalable = Scalable(
        name="generators",
        place=1,
        largest=largest,
        number=lambda: pool.number,
        num_coming=lambda: pool.num_coming,
        resize=pool.resize,
    )
    requests = [
        RoleRequest(role="learner", count=1, num_cpus=1, num_gpus=0, setting="learner.workers.num_workers"),
        RoleRequest(role="generator", count=pool.number, num_cpus=num_cpus, num_gpus=0, setting="generator.num_replicas"),
    ]
    return Scaling(run, [scalable], requests, note=notes.append)


def want(run: Path, number: int) -> None:
    (run / SCALE_NAME).write_text(json.dumps({"generators": number}))


def test_a_pool_grows_when_a_node_joins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, notes, cluster = Pool(1), list[str](), Cluster(monkeypatch, 2, used=2)
    scaling = scaling_of(tmp_path, pool, notes, largest=4)
    scaling.adjust()
    assert (pool.resized, notes) == ([], [])
    cluster.nodes.append(2)
    scaling.adjust()
    scaling.adjust()  # what the two take is not known yet, and they take no more for it
    assert (pool.resized, notes) == ([3], ["generators: 1 -> 3"])
    pool.come()
    cluster.used = 4
    scaling.adjust()
    assert pool.number == 3
    cluster.nodes.append(8)
    scaling.adjust()
    assert pool.number == 4  # and no more than max_replicas


def test_room_is_room_on_one_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, notes = Pool(1), list[str]()
    Cluster(monkeypatch, 3, 1, 1, used=3)  # two free CPUs, and a generator takes two
    scaling_of(tmp_path, pool, notes, largest=4, num_cpus=2.0).adjust()
    assert pool.number == 1


def test_what_others_use_of_the_cluster_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, notes = Pool(1), list[str]()
    Cluster(monkeypatch, 8, used=7)
    scaling_of(tmp_path, pool, notes, largest=4).adjust()
    assert pool.number == 2


def test_a_number_from_outside_holds_until_there_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, notes = Pool(3), list[str]()
    Cluster(monkeypatch, 8, used=4)
    scaling = scaling_of(tmp_path, pool, notes, largest=6)
    want(tmp_path, 1)
    scaling.adjust()
    scaling.adjust()
    assert (pool.resized, notes) == ([1], ["generators: 3 -> 1"])
    want(tmp_path, 5)
    scaling.adjust()
    assert pool.number == 5
    want(tmp_path, 2)
    scaling.adjust()  # those on their way may go
    assert pool.number == 2


def test_what_finds_no_room_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, notes = Pool(1), list[str]()
    Cluster(monkeypatch, 2, used=2)
    scaling = scaling_of(tmp_path, pool, notes, largest=6)
    want(tmp_path, 5)
    scaling.adjust()
    scaling.adjust()
    assert notes == ["generators: 5 are wanted, and the cluster has no room for more than 1"]


@pytest.mark.parametrize("text", ["{", '{"generators": 0}', "[1]", '{"generators": "two"}'])
def test_a_file_that_is_none_is_told_once_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    pool, notes = Pool(1), list[str]()
    Cluster(monkeypatch, 8, used=2)
    (tmp_path / SCALE_NAME).write_text(text)
    scaling = scaling_of(tmp_path, pool, notes, largest=6)
    scaling.adjust()
    scaling.adjust()
    (note,) = notes
    assert note.endswith("write it with `rayward scale`")
    assert pool.resized == []
