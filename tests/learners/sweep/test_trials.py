"""One trial: its process, and what Tune hears of it."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from cluster.storage.run_directory import read_summary
from learners.sweep import loading
from learners.sweep.trainable import TuneTrial
from learners.sweep.trial_process import TrialCommand, TrialProcess

CLIFF = Path(loading.__file__).parents[2] / "configs" / "train" / "q_learning_cliff_walking.yaml"
END_S = 60.0


def command(tmp_path: Path, *arguments: str) -> TrialCommand:
    return TrialCommand(
        arguments=("train", *arguments, f"runs_dir={tmp_path}"),
        folder=str(tmp_path),
        log=str(tmp_path / "logs" / "trial.log"),
        variables={"RAYWARD_TRIAL": "1"},
    )


def order(run: Path, **others: Any) -> dict[str, Any]:
    return {
        "run": str(run),
        "state": "completed",
        "command": None,
        "metric": "after/return_mean",
        "growing": "episode/return_mean",
        "is_scheduled": False,
        "last_step": 3,
        **others,
    }


def trial_of(given: dict[str, Any]) -> TuneTrial:
    trial = TuneTrial.__new__(TuneTrial)  # as Tune's actor does it, but for its logs
    trial.setup(given)
    return trial


def write_run(run: Path) -> Path:
    lines = [{"step": step, "episode/return_mean": float(-step)} for step in (1, 2, 3)]
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (run / "summary.json").write_text(json.dumps({"state": "completed", "after": {"return_mean": 0.25}}))
    return run


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    process = TrialProcess(command(tmp_path, str(CLIFF), "learner.gamma=7"))
    assert process.outcome(wait_s=END_S) == "failed"
    assert process.said() == f"{CLIFF}: learner.gamma: Input should be less than 1 (got 7)"


def test_the_log_keeps_what_earlier_processes_said_and_each_tells_its_own_end(tmp_path: Path) -> None:
    for gamma in ("7", "8"):
        process = TrialProcess(command(tmp_path, str(CLIFF), f"learner.gamma={gamma}"))
        assert process.outcome(wait_s=END_S) == "failed"
        assert process.said() == f"{CLIFF}: learner.gamma: Input should be less than 1 (got {gamma})"
    lines = (tmp_path / "logs" / "trial.log").read_text().splitlines()
    assert [line.split(" learner.")[1] for line in lines if line.startswith("$ rayward train ")] == [
        f"gamma={gamma} runs_dir={tmp_path}" for gamma in ("7", "8")
    ]
    assert sum("Input should be less than 1" in line for line in lines) == 2


def test_a_process_that_is_stopped_leaves_an_interrupted_run(tmp_path: Path) -> None:
    process = TrialProcess(command(tmp_path, str(CLIFF), "name=long", "learner.num_episodes=1000000"))
    metrics = tmp_path / "long" / "metrics.jsonl"
    for _ in range(600):
        if metrics.is_file() and metrics.stat().st_size:
            break
        threading.Event().wait(0.1)
    assert process.outcome(wait_s=0.0) == "running"
    process.stop()
    assert process.outcome(wait_s=0.0) == "interrupted"
    assert read_summary(tmp_path / "long")["state"] == "interrupted"
    process.stop()  # nothing is left to stop


def test_a_trial_that_ended_before_is_told_again_line_by_line(tmp_path: Path) -> None:
    trial = trial_of(order(write_run(tmp_path / "run"), is_scheduled=True, metric="episode/return_mean", state="stopped"))
    results = [trial.step() for _ in range(3)]
    assert [(result["step"], result["value"], result["state"]) for result in results] == [
        (1, -1.0, "running"),
        (2, -2.0, "running"),
        (3, -3.0, "stopped"),  # the last line comes with the end
    ]
    assert [result.get("done", False) for result in results] == [False, False, True]


def test_people_hear_the_newest_line_and_the_value_at_the_end(tmp_path: Path) -> None:
    trial = trial_of(order(write_run(tmp_path / "run")))
    results = [trial.step() for _ in range(2)]
    assert [(result["step"], result.get("value")) for result in results] == [(2, None), (3, 0.25)]


def test_a_trial_without_the_metric_has_failed_and_says_what_it_has(tmp_path: Path) -> None:
    trial = trial_of(order(write_run(tmp_path / "run"), metric="score/mean", last_step=1))
    result = trial.step()
    assert (result["state"], result["done"], "value" in result) == ("failed", True, False)
    assert result["error"] == "it ended without the metric score/mean; it has after/return_mean, episode/return_mean"


@pytest.mark.parametrize(("overrides", "state"), [(["learner.num_episodes=20"], "completed"), (["learner.gamma=7"], "failed")])
def test_a_trial_is_a_run_of_its_own(tmp_path: Path, overrides: list[str], state: str) -> None:
    from dataclasses import asdict

    given = order(tmp_path / "one", command=asdict(command(tmp_path, str(CLIFF), "name=one", *overrides)), last_step=20)
    trial = trial_of(given)
    results = [trial.step()]
    while not results[-1].get("done"):
        results.append(trial.step())
    trial.cleanup()
    assert results[-1]["state"] == state
    assert results[-1]["seconds"] > 0
    assert ("value" in results[-1]) is (state == "completed")
