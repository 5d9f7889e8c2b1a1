"""Nodes of a cluster that are lost in the midst of a run, and nodes that join: nothing is lost, and nothing is there twice."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.fault_table import FaultRow, likeness
from tests.faults.faulty_run import GENERATOR, RANK, FaultyRun, at_some_instant, wait_until
from tests.faults.node_cluster import NodeCluster, node_cluster

__all__ = ["node_cluster"]  # a fixture

SHARED_MEMORY = Path("/dev/shm")
APART = ("learner.workers.num_cpus=0.8", "generator.num_cpus=0.5")  # on nodes of one CPU
BACK_S = 120.0  # a step after the loss: a node is noticed, another one starts, and a generator or all ranks on it
UPDATES_A_STEP = 2  # 16 trajectories in minibatches of 8
LOST_AT = 6  # steps: a checkpoint is written, and another is to come


def some_instant(run: FaultyRun, earlier: set[Path]) -> None:
    at_some_instant(run.num_steps_done)


def publication(run: FaultyRun, earlier: set[Path]) -> None:
    """The learner has written a file, and the generator's node may begin to fetch it."""
    file = f"policy-v{UPDATES_A_STEP * (run.num_steps_done + 2):06d}.safetensors"
    wait_until(lambda: any(folder.glob(f"*/{file}") for folder in run_folders() - earlier), file)


def run_folders() -> set[Path]:
    return set(SHARED_MEMORY.glob("rayward-*"))


def node_of(nodes: NodeCluster, kind: str) -> str:
    wait_until(lambda: nodes.node_of(kind) is not None, f"a process {kind}")
    node = nodes.node_of(kind)
    assert node is not None
    return node


MOMENTS: dict[str, tuple[str, Callable[[FaultyRun, set[Path]], None]]] = {
    "rolling out": (GENERATOR, some_instant),
    "learning": (RANK, some_instant),
    "publishing": (RANK, publication),
}


@pytest.mark.timeout(1800)
@pytest.mark.faults
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_outlives_a_node(
    clean_run: FaultyRun,
    node_cluster: NodeCluster,
    tmp_path: Path,
    measured: Callable[[FaultRow], None],
    moment: str,
) -> None:
    for _ in range(2):
        node_cluster.add_node()
    kind, wait = MOMENTS[moment]
    earlier = run_folders()
    run = FaultyRun(tmp_path, "nodes", *APART, **node_cluster.environment).start()
    try:
        run.wait_for_step(LOST_AT)
        assert node_of(node_cluster, RANK) != node_of(node_cluster, GENERATOR), "weights travel between nodes"
        lost = node_of(node_cluster, kind)
        wait(run, earlier)
        num_done = run.num_steps_done
        node_cluster.lose(lost)
        lost_s = time.monotonic()
        node_cluster.add_node()
        run.wait_for_step(num_done + 1)
        back_s = time.monotonic() - lost_s
        is_clean = run.ends_as(clean_run)
    finally:
        run.kill()
    measured(
        FaultRow(
            row="25",
            fault=f"a node is lost while {moment}, another joins",
            num_injected=1,
            num_survived=int(is_clean),
            losses=run.losses(clean_run),
            measured=f"next step after {back_s:.0f} s; {likeness(is_clean)}",
            bar=f"{BACK_S:.0f} s",
            holds=is_clean and back_s <= BACK_S,
        )
    )
    assert is_clean, run.output


@pytest.mark.timeout(1800)
@pytest.mark.faults
def test_a_run_grows_when_a_node_joins(node_cluster: NodeCluster, tmp_path: Path, measured: Callable[[FaultRow], None]) -> None:
    for _ in range(2):
        node_cluster.add_node()
    more = ("generator.max_replicas=2", "learner.num_steps=80")
    run = FaultyRun(tmp_path, "grows", *APART, *more, **node_cluster.environment).start()
    try:
        run.wait_for_step(2)
        node_cluster.add_node()
        joined_s = time.monotonic()
        back_s = run.wait_for_output("generator 1 has joined") - joined_s
        exit_code = run.wait()
    finally:
        run.kill()
    audit = run.audit()
    is_whole = exit_code == 0 and not audit.problems and audit.num_trained == 80 * 8 * 2
    measured(
        FaultRow(
            row="25",
            fault="a node joins, and a generator with it",
            num_injected=1,
            num_survived=int(is_whole),
            measured=f"at work after {back_s:.0f} s; {audit.num_trained} trajectories, each once",
            bar=f"{BACK_S:.0f} s",
            holds=is_whole and back_s <= BACK_S,
        )
    )
    assert is_whole, run.output
