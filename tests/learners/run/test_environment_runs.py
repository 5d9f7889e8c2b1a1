"""Runs in an environment from configuration to report, without Ray; interrupted ones go on bit by bit."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from cluster.errors import CannotResumeError, ConfigError, EnvironmentFailedError, RunInterruptedError
from cluster.storage.run_directory import read_summary
from learners.report.terminal import list_runs
from learners.run import commands
from learners.run.plan import plan_run, role_requests
from learners.settings.run import load_run_config
from learners.tabular.training import TableTraining

CONFIGS = Path(commands.__file__).parents[2] / "configs" / "train"
SHORT = ["learner.num_episodes=150", "checkpoint.every_num_episodes=40"]


def config_of(name: str, runs_dir: Path, *overrides: str) -> Any:
    return load_run_config(CONFIGS / f"{name}.yaml", [f"runs_dir={runs_dir}", *overrides])


def metrics_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def tables_of(run: Path) -> dict[str, bytes]:
    newest = max((run / "checkpoints").glob("step-*"))
    return {name: array.tobytes() for name, array in load_file(newest / "tables.safetensors").items()}


@pytest.fixture
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that is not there: whoever tries to join it fails."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")


@pytest.mark.usefixtures("_no_ray")
def test_a_run_learns_reports_and_starts_no_ray(tmp_path: Path) -> None:
    config = config_of("q_learning_cliff_walking", tmp_path, *SHORT, "learner.step_size.start=0.5")
    assert role_requests(config) == []
    run = commands.run_training(config)
    summary = read_summary(run)
    assert summary["state"] == "completed"
    assert list(summary["wall_s"]) == ["evaluate before", "train", "evaluate after"]
    assert summary["before"]["return_mean"] == pytest.approx(-100.0)
    assert summary["after"]["return_mean"] > summary["before"]["return_mean"]
    lines = metrics_of(run)
    assert len(lines) == 100
    assert lines[-1]["step"] == 150
    folders = {entry.name for entry in run.iterdir() if entry.is_dir()}
    assert folders == {"checkpoints", "evaluation", "logs", "tensorboard"}
    page = (run / "report.html").read_text()
    assert "An episode, before and after" in page
    assert "<mark>" not in page.split("<h2>An episode")[0]
    assert (run / "report.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["step-000120", "step-000150"]
    [listed] = list_runs(tmp_path)
    assert set(listed["result"]) == {"return_before", "return_after"}


@pytest.mark.usefixtures("_no_ray")
def test_planning_finds_the_optimum(tmp_path: Path) -> None:
    for algorithm in ("value_iteration", "policy_iteration"):
        run = commands.run_training(
            config_of("value_iteration_frozen_lake", tmp_path, f"learner.algorithm={algorithm}", "task.options.map_name=4x4")
        )
        after = read_summary(run)["after"]
        assert after["return_mean"] == pytest.approx(after["optimal_return"], abs=1e-9)
        assert metrics_of(run)[-1]["planning/start_value"] == pytest.approx(after["optimal_return"], abs=1e-7)


def interrupt_in(monkeypatch: pytest.MonkeyPatch, episode: int) -> None:
    """Ctrl-C in the midst of an episode, once."""
    run_episode = TableTraining.run_episode

    def interrupted(training: TableTraining) -> None:
        run_episode(training)
        if training.num_done == episode:
            monkeypatch.setattr(TableTraining, "run_episode", run_episode)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(TableTraining, "run_episode", interrupted)


@pytest.mark.usefixtures("ctrl_c_reaches_children")
@pytest.mark.parametrize("interrupted_at", [60, 93])  # where an episode is also reported, and where it is not
def test_a_resumed_run_gives_the_bits_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted_at: int
) -> None:
    whole = commands.run_training(config_of("q_learning_taxi", tmp_path / "whole", *SHORT))
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGALRM)
    interrupt_in(monkeypatch, interrupted_at)
    with pytest.raises(RunInterruptedError):
        commands.run_training(config_of("q_learning_taxi", tmp_path / "cut", *SHORT))
    for number, handler in zip((signal.SIGINT, signal.SIGTERM, signal.SIGALRM), before, strict=True):
        signal.signal(number, handler)  # the process would have ended here
    cut = tmp_path / "cut" / "q_learning_taxi"
    assert read_summary(cut)["state"] == "interrupted"
    assert (cut / "checkpoints" / f"step-{interrupted_at:06d}").is_dir()
    commands.resume_run(cut, [], fresh=False)
    assert tables_of(cut) == tables_of(whole)
    assert metrics_of(cut) == metrics_of(whole)
    assert read_summary(cut)["after"] == read_summary(whole)["after"]


def test_a_killed_run_goes_on_from_its_checkpoint_and_drops_later_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = commands.run_training(config_of("sarsa_cliff_walking", tmp_path / "whole", *SHORT))
    run_episode = TableTraining.run_episode

    def broken(training: TableTraining) -> None:
        if training.num_done == 97:
            raise OSError("the environment broke")
        run_episode(training)

    monkeypatch.setattr(TableTraining, "run_episode", broken)
    with pytest.raises(Exception, match="unexpected OSError: the environment broke"):
        commands.run_training(config_of("sarsa_cliff_walking", tmp_path / "cut", *SHORT))
    monkeypatch.setattr(TableTraining, "run_episode", run_episode)
    cut = tmp_path / "cut" / "sarsa_cliff_walking"
    assert max(path.name for path in (cut / "checkpoints").iterdir()) == "step-000080"
    commands.resume_run(cut, [], fresh=False)
    assert tables_of(cut) == tables_of(whole)
    assert metrics_of(cut) == metrics_of(whole)


def test_another_task_does_not_go_on_with_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_episode = TableTraining.run_episode

    def broken(training: TableTraining) -> None:
        if training.num_done == 50:
            raise OSError("the environment broke")
        run_episode(training)

    monkeypatch.setattr(TableTraining, "run_episode", broken)
    with pytest.raises(Exception, match="the environment broke"):
        commands.run_training(config_of("q_learning_frozen_lake", tmp_path, *SHORT))
    with pytest.raises(CannotResumeError, match="written under other facts: task was .*4x4.*, is .*8x8.*--fresh"):
        commands.resume_run(tmp_path / "q_learning_frozen_lake", ["task.options.map_name=8x8"], fresh=False)


@pytest.mark.parametrize(
    ("name", "override", "said"),
    [
        ("q_learning_taxi", "task.env=NoSuchTaxi-v1", "task.env=NoSuchTaxi-v1 cannot be made"),
        ("q_learning_taxi", "task.options.wind=3", "cannot be made"),
        ("value_iteration_frozen_lake", "task={env: Blackjack-v1}", "plans with a model, and task.env=Blackjack-v1 has none"),
    ],
)
def test_a_bad_environment_is_told_before_there_is_a_run_directory(tmp_path: Path, name: str, override: str, said: str) -> None:
    config = config_of(name, tmp_path / "runs", override)
    for command in (commands.run_training, plan_run):
        with pytest.raises(ConfigError, match=said):
            command(config)
    assert not (tmp_path / "runs").exists()


def test_a_plan_says_what_will_be_done(tmp_path: Path) -> None:
    planned = plan_run(config_of("q_learning_taxi", tmp_path, "learner.num_episodes=7"))
    assert (planned["states"], planned["actions"], planned["max_episode_steps"], planned["num_episodes"]) == (500, 6, 200, 7)
    assert (planned["evaluation"], planned["ray_processes"]) == ("exact", 0)
    json.dumps(planned)


@pytest.mark.usefixtures("_no_ray")
def test_an_environment_that_raises_ends_the_run_with_its_message(tmp_path: Path) -> None:
    task = "task={kind: gymnasium, env: 'tests.learners.environments.failing:Mistaken-v0', options: %s}"
    for options, said in (
        ("{num_states: 3, fails_at_step: 700}", "in step"),
        ("{num_states: 3, fails_at_reset: true}", "in reset"),
    ):
        with pytest.raises(EnvironmentFailedError, match=rf"raised \w+ {said}: .*failing\.py:\d+"):
            commands.run_training(config_of("q_learning_taxi", tmp_path, *SHORT, task % options))
    assert "EnvironmentFailedError" in read_summary(tmp_path / "q_learning_taxi")["error"]
