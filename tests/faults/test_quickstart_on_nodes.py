"""The whole quickstart over three nodes of a cluster: the files that it writes on one machine, and the same weights in them."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.storage.ledger import audit_ledger
from tests.faults.fault_table import FaultRow
from tests.faults.faulty_run import ENGINE, RANK, REPOSITORY, wait_until
from tests.faults.node_cluster import NodeCluster, node_cluster

__all__ = ["node_cluster"]  # a fixture

# On nodes of one CPU no two of them share one.
APART = ("policy.generator.num_cpus=0.8", "policy.learner.workers.num_cpus=0.8", "policy.scorers.0.num_cpus=0.8")
ROLES = (ENGINE, RANK, "ray::RewardModelScorer")
NOT_COMPARED = ("logs", "tensorboard")  # whose names are Ray's and the clock's


def started(runs_dir: Path, *overrides: str, **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "rayward", "quickstart", "--small", f"runs_dir={runs_dir}", *overrides]
    runs_dir.mkdir()
    with (runs_dir / "output.log").open("wb") as log:
        return subprocess.Popen(
            command,
            cwd=REPOSITORY,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )


def result_files(run: Path) -> set[str]:
    paths = (path.relative_to(run) for path in run.rglob("*") if path.is_file())
    return {str(path) for path in paths if path.parts[0] not in NOT_COMPARED}


@pytest.mark.timeout(1800)
@pytest.mark.faults
def test_the_quickstart_on_three_nodes_ends_as_on_one(
    node_cluster: NodeCluster, tmp_path: Path, measured: Callable[[FaultRow], None], ctrl_c_reaches_children: None
) -> None:
    for _ in range(3):
        node_cluster.add_node()
    begun_s = time.monotonic()
    process = started(tmp_path / "three", *APART, **node_cluster.environment)
    try:
        wait_until(lambda: all(map(node_cluster.node_of, ROLES)) or process.poll() is not None, "all roles")
        nodes = {node_cluster.node_of(kind) for kind in ROLES}
        assert process.wait(1200) == 0, (tmp_path / "three" / "output.log").read_text()
    finally:
        process.kill()
    three_s = time.monotonic() - begun_s
    alone = started(tmp_path / "one")
    try:
        assert alone.wait(1200) == 0, (tmp_path / "one" / "output.log").read_text()
    finally:
        alone.kill()
    one_s = time.monotonic() - begun_s - three_s
    one, three = (tmp_path / name / "quickstart-small" for name in ("one", "three"))
    files, expected = result_files(three), result_files(one)
    weights = sorted(name for name in expected if name.endswith("model.safetensors"))
    equal = [name for name in weights if (three / name).is_file() and (one / name).read_bytes() == (three / name).read_bytes()]
    audits = [audit_ledger(run / "trajectories", max_staleness=0) for run in (one, three)]
    is_same = files == expected and equal == weights and audits[0].digest == audits[1].digest and not audits[1].problems
    measured(
        FaultRow(
            row="25",
            fault="none: the whole `quickstart --small` on three nodes",
            num_injected=0,
            num_survived=0,
            measured=f"{len(files)} result files, {len(equal)} of {len(weights)} weight files with the bits of one machine; "
            f"roles on {len(nodes)} nodes; {three_s:.0f} s, on one machine {one_s:.0f} s",
            bar="the files of one machine",
            holds=is_same and len(nodes) == len(ROLES),
        )
    )
    assert files == expected
    assert weights
    assert is_same
    assert len(nodes - {None}) == len(ROLES)
