"""Whole sweeps of a table in an environment: their trials, an interrupt and its resume, a trial that fails, ASHA, Optuna."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.storage.run_directory import read_summary
from learners.sweep.record import SweepRecord, Trial

LAKE = """
name: lake
task: {kind: gymnasium, env: FrozenLake-v1, options: {is_slippery: false}}
learner: {algorithm: q_learning, num_episodes: 60, step_size: {start: 0.5}}
"""
GATED_LAKE = """
import threading
from pathlib import Path

import gymnasium


class GatedLake(gymnasium.Wrapper):
    def __init__(self, lake, gate, num_free):
        super().__init__(lake)
        self.gate, self.num_free, self.num_resets = gate, num_free, 0

    def reset(self, **options):
        self.num_resets += 1
        while self.num_resets > self.num_free and not self.gate.exists():
            threading.Event().wait(0.05)
        return super().reset(**options)

    def step(self, action):
        observation, reward, *others = super().step(action)
        return observation, reward if self.gate.exists() else 0.0, *others


def build(gate, num_free=15, **options):
    if not Path(gate).parent.is_dir():
        raise ValueError("no such gate")
    return GatedLake(gymnasium.make("FrozenLake-v1", **options), Path(gate), num_free)


gymnasium.register("GatedLake-v0", entry_point=build)
"""
LOOK_S, MAX_LOOKS = 0.2, 1500

pytestmark = [pytest.mark.cold_start, pytest.mark.timeout(600), pytest.mark.usefixtures("no_ray", "ctrl_c_reaches_children")]


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    (folder / "lake.yaml").write_text(LAKE)
    return subprocess.Popen(
        [sys.executable, "-m", "rayward", *arguments, "--json"],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(folder: Path, *arguments: str) -> dict[str, Any]:
    process = start(folder, *arguments)
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    return json.loads(said)["sweep"]


def wait_until(is_so: Callable[[], bool]) -> None:
    for _ in range(MAX_LOOKS):
        if is_so():
            return
        threading.Event().wait(LOOK_S)
    raise AssertionError("it took too long")


def trials_of(sweep: Path) -> dict[str, Trial]:
    return {trial.name: trial for trial in SweepRecord.read(sweep).trials}


def test_a_sweep_is_interrupted_and_resumed(tmp_path: Path) -> None:
    """One trial fails at once, one is short, the last waits at a gate; one at a time."""
    (tmp_path / "gated_lake.py").write_text(GATED_LAKE)
    (tmp_path / "open").touch()
    sweep, gated = tmp_path / "runs" / "lake-sweep", ("task.env=gated_lake:GatedLake-v0", "checkpoint.every_num_episodes=5")
    grid = ("--grid", "task.options.gate=no/folder,open,closed", "--concurrent", "1")
    process = start(tmp_path, "sweep", "lake.yaml", *gated, *grid)
    metrics = sweep / "trial-003" / "metrics.jsonl"
    wait_until(lambda: metrics.is_file() and len(metrics.read_text().splitlines()) > 5)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert [trial.state for trial in trials_of(sweep).values()] == ["failed", "completed", "interrupted"]
    assert read_summary(sweep)["state"] == "interrupted"
    assert read_summary(sweep / "trial-003")["state"] == "interrupted"
    ended = (sweep / "trial-002" / "summary.json").stat().st_mtime_ns

    (tmp_path / "closed").touch()
    report = finish(tmp_path, "resume", "lake-sweep")
    assert report["state"] == "completed"
    trials = trials_of(sweep)
    assert [trial.state for trial in trials.values()] == ["failed", "completed", "completed"]
    assert "no such gate" in str(trials["trial-001"].error)
    assert trials["trial-003"].value == read_summary(sweep / "trial-003")["after"]["return_mean"]
    assert (sweep / "trial-002" / "summary.json").stat().st_mtime_ns == ended  # it did not run again
    log = (sweep / "logs" / "trial-003.log").read_text()
    assert log.count("evaluate before running") == 1  # resumed, not begun again
    assert [line.split()[2] for line in log.splitlines() if line.startswith("$ ")] == ["train", "resume"]
    command = "rayward train lake.yaml task.env=gated_lake:GatedLake-v0 checkpoint.every_num_episodes=5 task.options.gate=open"
    assert report["best"]["command"] == command
    assert (sweep / "report.png").is_file()


def test_asha_stops_what_falls_behind(tmp_path: Path) -> None:
    """One trial at a time, the good one first. The other gets no reward and waits at a gate long after the first rung, so that it
    cannot come through before it is stopped."""
    (tmp_path / "gated_lake.py").write_text(GATED_LAKE)
    (tmp_path / "open").touch()
    gated = ("task.env=gated_lake:GatedLake-v0", "task.options.num_free=6000", "learner.num_episodes=8000")
    asha = ("--scheduler", "asha", "--grace-steps", "2000", "--concurrent", "1")
    explores = "learner.epsilon={start: 1.0, end: 0.05, over_num_episodes: 1000}"
    report = finish(tmp_path, "sweep", "lake.yaml", *gated, explores, "--grid", "task.options.gate=open,closed", *asha)
    good, bad = report["trials"]
    assert (good["state"], good["settings"]["task.options.gate"]) == ("completed", "open")
    assert bad["state"] == "stopped"
    assert bad["step"] < 8000
    assert read_summary(tmp_path / report["path"] / bad["name"])["state"] == "interrupted"


def test_optuna_finds_its_trials_on_the_way(tmp_path: Path) -> None:
    sample = ("--sample", "learner.step_size.start=uniform(0.1,1)", "--search", "optuna", "--samples", "2")
    report = finish(tmp_path, "sweep", "lake.yaml", *sample, "--concurrent", "1", "--name", "found")
    values = [float(trial["settings"]["learner.step_size.start"]) for trial in report["trials"]]
    assert len(set(values)) == 2
    assert all(0.1 <= value <= 1 for value in values)
    assert [trial["state"] for trial in report["trials"]] == ["completed"] * 2
