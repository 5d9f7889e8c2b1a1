"""A run with RLlib outlives its env runners, its learner, its driver, and a node of the cluster that it joined."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.faults.fault_table import FaultRow, likeness, seconds
from tests.faults.faulty_run import ORPHANS_GONE_S, REPOSITORY, FaultyRun, at_some_instant, seconds_after_each_kill
from tests.faults.node_cluster import NodeCluster, node_cluster

__all__ = ["node_cluster"]  # a fixture

ENV_RUNNER = "ray::SingleAgentEnvRunner"
LEARNER = "ray::_WrappedExecutable"  # as Ray Train calls the class that RLlib hands it
BACK_S = 60.0
STEPS = (5_000, 15_000, 25_000)  # environment steps done when a process is killed
SETTINGS = (
    "learner.num_env_steps=40000",
    "learner.num_env_runners=2",
    "learner.num_cpus_per_env_runner=0.5",
    "learner.num_learners=1",
    "learner.num_cpus_per_learner=0.5",
    "checkpoint.every_num_env_steps=8000",
    "evaluation.num_episodes=10",
)


class RLlibRun(FaultyRun):
    """`rayward train configs/train/ppo_cartpole.yaml` under test. Its steps are environment steps."""

    def __init__(self, folder: Path, name: str, **environment: str) -> None:
        super().__init__(folder, name, **environment)
        config = REPOSITORY / "configs" / "train" / "ppo_cartpole.yaml"
        self._arguments = ["train", str(config), f"name={name}", f"runs_dir={folder}", *SETTINGS]

    def policy(self) -> bytes:
        """The bytes of network and optimizer at the end."""
        arrays = load_file(max((self.path / "checkpoints").glob("step-*")) / "rllib.safetensors")
        return b"".join(array.tobytes() for name, array in sorted(arrays.items()) if "/learner/" in name)


@pytest.fixture(scope="module")
def clean_policy(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    run = RLlibRun(tmp_path_factory.mktemp("clean"), "clean").start()
    assert run.wait() == 0, run.output
    return run.policy()


@pytest.fixture
def run(tmp_path: Path, ctrl_c_reaches_children: None) -> Iterator[FaultyRun]:
    started = RLlibRun(tmp_path, "hurt").start()
    yield started
    started.kill()


@pytest.mark.timeout(1800)
@pytest.mark.faults
@pytest.mark.parametrize("kind", [ENV_RUNNER, LEARNER])
def test_a_run_outlives_its_processes(
    clean_policy: bytes, run: FaultyRun, measured: Callable[[FaultRow], None], kind: str
) -> None:
    back_s = []
    for step in STEPS:
        run.wait_for_step(step)
        at_some_instant(step)
        num_done = run.num_steps_done
        hurt_s = run.hurt(kind)
        run.wait_for_step(num_done + 1)
        back_s.append(time.monotonic() - hurt_s)
    processes = run.all_processes
    is_over = run.wait() == 0
    is_clean = is_over and run.policy() == clean_policy
    left_s = run.seconds_to_its_last_process(processes)
    holds = is_over and max(back_s) <= BACK_S and left_s <= ORPHANS_GONE_S and (is_clean or kind == ENV_RUNNER)
    measured(
        FaultRow(
            row="26",
            fault=f"SIGKILL {kind}",
            num_injected=len(STEPS),
            num_survived=len(STEPS) if is_over else 0,
            measured=f"next iteration after {seconds(back_s)}"
            + ("; other episodes" if kind == ENV_RUNNER else f"; {likeness(is_clean)}"),
            bar=f"{BACK_S:.0f} s",
            holds=holds,
        )
    )
    assert holds, run.output


@pytest.mark.timeout(1800)
@pytest.mark.faults
def test_a_killed_driver_is_a_resume(clean_policy: bytes, run: FaultyRun, measured: Callable[[FaultRow], None]) -> None:
    gone_s = seconds_after_each_kill(run, STEPS)
    is_clean = run.wait() == 0 and run.policy() == clean_policy
    measured(
        FaultRow(
            row="26",
            fault="SIGKILL driver with RLlib, then `rayward resume`, three times in one run",
            num_injected=len(STEPS),
            num_survived=len(STEPS) if is_clean else 0,
            measured=f"last process gone after {seconds(gone_s)}; {likeness(is_clean)}",
            bar=f"{ORPHANS_GONE_S:.0f} s",
            holds=is_clean and max(gone_s) <= ORPHANS_GONE_S,
        )
    )
    assert is_clean, run.output
    assert max(gone_s) <= ORPHANS_GONE_S


@pytest.mark.timeout(1800)
@pytest.mark.faults
def test_a_run_outlives_a_node(node_cluster: NodeCluster, tmp_path: Path, measured: Callable[[FaultRow], None]) -> None:
    """Env runners and learner have the nodes, of one CPU each; the driver is on the head, which has none."""
    for _ in range(2):
        node_cluster.add_node()
    run = RLlibRun(tmp_path, "nodes", **node_cluster.environment).start()
    try:
        run.wait_for_step(STEPS[0])
        lost, num_done = node_cluster.node_of(ENV_RUNNER), run.num_steps_done
        assert lost is not None, run.output
        node_cluster.lose(lost)
        lost_s = time.monotonic()
        node_cluster.add_node()
        run.wait_for_step(num_done + 1)
        back_s = time.monotonic() - lost_s
        is_over = run.wait() == 0
    finally:
        run.kill()
    measured(
        FaultRow(
            row="26",
            fault="a node with an env runner is lost, another joins",
            num_injected=1,
            num_survived=int(is_over),
            measured=f"next iteration after {seconds([back_s])}; other episodes",
            bar=f"{BACK_S:.0f} s",
            holds=is_over and back_s <= BACK_S,
        )
    )
    assert is_over, run.output
