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

ROOT = Path(__file__).resolve().parents[3]
LAKE = """
name: lake
task: {kind: gymnasium, env: FrozenLake-v1, options: {is_slippery: false}}
learner: {algorithm: q_learning, num_episodes: 200, step_size: {start: 0.5}}
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
    return {trial.name: trial for trial in SweepRecord.read(sweep).trials} if (sweep / "sweep.json").is_file() else {}


def test_a_sweep_is_interrupted_and_resumed(tmp_path: Path) -> None:
    """The first trial is short, the second long, the third would come after it."""
    sweep = tmp_path / "runs" / "lake-sweep"
    process = start(tmp_path, "sweep", "lake.yaml", "--grid", "learner.num_episodes=50,100000,60", "--concurrent", "1")
    wait_until(lambda: (sweep / "trial-002" / "metrics.jsonl").is_file() and trials_of(sweep)["trial-002"].step is not None)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert [trial.state for trial in trials_of(sweep).values()] == ["completed", "interrupted", "pending"]
    assert read_summary(sweep)["state"] == "interrupted"
    assert read_summary(sweep / "trial-002")["state"] == "interrupted"
    first = (sweep / "trial-001" / "summary.json").stat().st_mtime_ns

    report = finish(tmp_path, "resume", "lake-sweep")
    assert report["state"] == "completed"
    assert [trial.state for trial in trials_of(sweep).values()] == ["completed"] * 3
    assert (sweep / "trial-001" / "summary.json").stat().st_mtime_ns == first  # it did not run again
    log = (sweep / "logs" / "trial-002.log").read_text()
    assert "evaluate before running" not in log  # resumed, not begun
    assert (sweep / "report.png").is_file()


def test_a_trial_that_fails_ends_nothing_else(tmp_path: Path) -> None:
    report = finish(tmp_path, "sweep", "lake.yaml", "--grid", "task.options.map_name=4x4,nowhere,8x8")
    by_map = {trial["settings"]["task.options.map_name"]: trial for trial in report["trials"]}
    states = {name: trial["state"] for name, trial in by_map.items()}
    assert states == {"4x4": "completed", "8x8": "completed", "nowhere": "failed"}
    assert "nowhere" in by_map["nowhere"]["error"]
    assert by_map["4x4"]["value"] == read_summary(Path(report["path"]) / by_map["4x4"]["name"])["after"]["return_mean"]
    assert report["best"]["command"] == "rayward train lake.yaml task.options.map_name=4x4"


def test_asha_stops_what_falls_behind(tmp_path: Path) -> None:
    """A step size of 1e-9 learns nothing on ice that does not slip; the trials come one after the other, the good ones first."""
    shared = ("learner.num_episodes=20000", "learner.epsilon.end=0.05", "learner.epsilon.over_num_episodes=1000")
    asha = ("--scheduler", "asha", "--grace-steps", "2000", "--concurrent", "1")
    report = finish(tmp_path, "sweep", "lake.yaml", *shared, "--grid", "learner.step_size.start=0.9,0.8,1e-9", *asha)
    states = {trial["settings"]["learner.step_size.start"]: trial["state"] for trial in report["trials"]}
    assert states["1e-9"] == "stopped"
    assert states["0.9"] == "completed"
    stopped = next(trial for trial in report["trials"] if trial["state"] == "stopped")
    assert stopped["step"] < 20000
    assert read_summary(Path(report["path"]) / stopped["name"])["state"] == "interrupted"


def test_optuna_finds_its_trials_on_the_way(tmp_path: Path) -> None:
    sample = ("--sample", "learner.step_size.start=uniform(0.1,1)", "--search", "optuna", "--samples", "3")
    report = finish(tmp_path, "sweep", "lake.yaml", *sample, "--concurrent", "1", "--name", "found")
    values = [float(trial["settings"]["learner.step_size.start"]) for trial in report["trials"]]
    assert len(set(values)) == 3
    assert all(0.1 <= value <= 1 for value in values)
    assert [trial["state"] for trial in report["trials"]] == ["completed"] * 3
