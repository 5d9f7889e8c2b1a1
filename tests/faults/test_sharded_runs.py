"""A run with a sharded learner outlives what a run with one rank does: alone on a machine, and over three nodes.

Two ranks hold one model between them. On three nodes of a cluster each of them has a node, and so has the generator.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults import test_stopped_processes as stopped
from tests.faults.fault_table import FaultRow, likeness, seconds
from tests.faults.faulty_run import (
    CHECKPOINT_EVERY,
    GENERATOR,
    NUM_INSTANTS,
    ORPHANS_GONE_S,
    RANK,
    SCORER,
    FaultyRun,
    hurt_five_times,
    seconds_after_each_kill,
)
from tests.faults.node_cluster import NodeCluster, RunOnNodes, node_cluster
from tests.faults.test_bad_checkpoints import cut, every_damage, flip
from tests.faults.test_killed_during_push import NUM_KILLS, folders_of_runs, kill_generators_that_take_weights

__all__ = ["node_cluster"]  # a fixture

SHARDED = ("learner.workers.num_workers=2", "learner.workers.sharding=full")
APART = ("learner.workers.num_cpus=0.8", "generator.num_cpus=0.5")  # on nodes of one CPU
HERE, ON_NODES = "two sharded ranks", "two sharded ranks and a generator, a node each"
ROWS = {GENERATOR: "1", SCORER: "2", RANK: "3"}
RANK_BACK_S = 60.0
KILLED_AFTER = (3, 9, 17)  # steps: the driver

Starter = Callable[[], FaultyRun]

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]


@pytest.fixture(scope="session")
def clean_sharded_run(tmp_path_factory: pytest.TempPathFactory) -> FaultyRun:
    run = FaultyRun(tmp_path_factory.mktemp("clean-sharded"), "clean", *SHARDED).start()
    assert run.wait() == 0, run.output
    return run


@pytest.fixture(params=[HERE, ON_NODES])
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def earlier() -> set[Path]:
    """Folders of runs in shared memory, before this one."""
    return folders_of_runs()


@pytest.fixture
def settings() -> tuple[str, ...]:
    """Of one test, beside those of all."""
    return ()


@pytest.fixture
def seen_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that stands still; the run and the nodes that start from now on inherit it."""
    for name, value in stopped.RANK_SETTING.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def run(
    earlier: set[Path],
    clean_sharded_run: FaultyRun,
    place: str,
    settings: tuple[str, ...],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    ctrl_c_reaches_children: None,
) -> Iterator[FaultyRun]:
    """Started."""
    if place == HERE:
        run = FaultyRun(tmp_path, "run", *SHARDED, *settings)
    else:
        nodes: NodeCluster = request.getfixturevalue("node_cluster")
        for _ in range(3):
            nodes.add_node()
        run = RunOnNodes(nodes, tmp_path, "run", *SHARDED, *APART, *settings)
    yield run.start()
    run.kill()


@pytest.mark.parametrize("kind", ROWS)
def test_a_sharded_run_outlives_its_processes(
    clean_sharded_run: FaultyRun, run: FaultyRun, place: str, measured: Callable[[FaultRow], None], kind: str
) -> None:
    recovery_s = hurt_five_times(run, kind)
    is_clean = run.ends_as(clean_sharded_run)
    bar_s = RANK_BACK_S if kind == RANK else 1.5 * clean_sharded_run.cold_start_s + 5.0
    measured(
        FaultRow(
            row=ROWS[kind],
            fault=f"SIGKILL {kind}, {place}",
            num_injected=NUM_INSTANTS,
            num_survived=NUM_INSTANTS if is_clean else 0,
            losses=run.losses(clean_sharded_run),
            measured=f"next step after {seconds(recovery_s)}; {likeness(is_clean)}",
            bar=f"{bar_s:.0f} s",
            holds=is_clean and max(recovery_s) <= bar_s,
        )
    )
    assert is_clean, run.output


@pytest.mark.parametrize("settings", [pytest.param(stopped.SETTINGS, id="short deadlines")])
@pytest.mark.parametrize("kind", stopped.LOST)
def test_what_stands_still_in_a_sharded_run_is_named_and_replaced(
    clean_sharded_run: FaultyRun,
    seen_soon: None,
    run: FaultyRun,
    place: str,
    measured: Callable[[FaultRow], None],
    kind: str,
) -> None:
    stall = stopped.stop(run, kind)
    is_clean = run.ends_as(clean_sharded_run)
    measured(
        FaultRow(
            row="1b",
            fault=f"SIGSTOP {kind}, {place}",
            num_injected=1,
            num_survived=int(is_clean),
            losses=run.losses(clean_sharded_run),
            measured=f"{stall.measured}; {likeness(is_clean)}",
            bar=stopped.bar(kind),
            holds=is_clean and stall.is_in_time(kind),
        )
    )
    assert is_clean, run.output
    assert "stopped" in stall.stacks


def test_a_generator_killed_while_it_takes_weights_from_shards(
    clean_sharded_run: FaultyRun, earlier: set[Path], run: FaultyRun, place: str, measured: Callable[[FaultRow], None]
) -> None:
    kill_generators_that_take_weights(run, earlier)
    is_clean = run.ends_as(clean_sharded_run)
    measured(
        FaultRow(
            row="1c",
            fault=f"SIGKILL generator when new weights were just published, {place}",
            num_injected=NUM_KILLS,
            num_survived=NUM_KILLS if is_clean else 0,
            losses=run.losses(clean_sharded_run),
            measured=f"one policy version a step; {likeness(is_clean)}",
            bar="one version",
            holds=is_clean,
        )
    )
    assert is_clean, run.output


def test_a_sharded_run_goes_on_after_its_driver(
    clean_sharded_run: FaultyRun, run: FaultyRun, place: str, measured: Callable[[FaultRow], None]
) -> None:
    gone_s = seconds_after_each_kill(run, KILLED_AFTER)
    is_clean = run.ends_as(clean_sharded_run)
    measured(
        FaultRow(
            row="4",
            fault=f"SIGKILL driver, then `rayward resume`, {place}",
            num_injected=len(KILLED_AFTER),
            num_survived=len(KILLED_AFTER) if is_clean else 0,
            losses=run.losses(clean_sharded_run),
            measured=f"last process gone after {seconds(gone_s)}; {likeness(is_clean)}",
            bar=f"{ORPHANS_GONE_S:.0f} s",
            holds=is_clean and max(gone_s) <= ORPHANS_GONE_S,
        )
    )
    assert is_clean, run.output
    assert max(gone_s) <= ORPHANS_GONE_S


def test_a_damaged_checkpoint_of_a_sharded_run_is_passed_over(
    clean_sharded_run: FaultyRun, run: FaultyRun, place: str, measured: Callable[[FaultRow], None], tmp_path: Path
) -> None:
    run.wait_for_step(2 * CHECKPOINT_EVERY + 3)
    run.kill()
    checkpoints, kept = run.path / "checkpoints", tmp_path / "kept"
    num_injected, num_found = every_damage(checkpoints, tmp_path / "copy")
    shutil.copytree(checkpoints, kept)
    for folder in checkpoints.glob("step-*"):
        cut(folder / "learner.json")
    num_done = run.num_steps_done
    exit_code = run.resume().wait()
    num_more = run.num_steps_done - num_done
    shutil.rmtree(checkpoints)
    kept.rename(checkpoints)
    *_, part = sorted(max(checkpoints.glob("step-*")).glob("*.safetensors"))  # of the last rank
    flip(part)
    is_clean = run.resume().ends_as(clean_sharded_run)
    measured(
        FaultRow(
            row="7",
            fault=f"each file of a checkpoint emptied, cut, flipped, removed; all of them cut; {place}",
            num_injected=num_injected + 1,
            num_survived=num_found + int(exit_code == 3 and num_more == 0),
            losses=run.losses(clean_sharded_run),
            measured=f"{num_found} of {num_injected} found; none intact: exit {exit_code}, {num_more} steps run; resumed from "
            f"the one before: {likeness(is_clean)}",
            bar="all found; exit 3, 0 steps",
            holds=is_clean and num_found == num_injected and (exit_code, num_more) == (3, 0),
        )
    )
    assert num_found == num_injected
    assert (exit_code, num_more) == (3, 0), run.output
    assert str(part) in run.output
    assert is_clean, run.output
