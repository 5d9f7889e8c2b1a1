"""Runs with RLlib's algorithms from configuration to report; interrupted and hurt ones go on."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from cluster.errors import CannotResumeError, EnvironmentFailedError
from cluster.storage.run_directory import read_summary
from learners.report.terminal import list_runs
from learners.rllib.training import RLlibTraining
from learners.run import commands
from learners.run.environment.rllib_stage import GymnasiumWorld
from learners.settings.run import RLlibRunConfig, load_run_config
from tests.learners.rllib.small_learners import BC, DQN, MARWIL, PPO, SAC

pytestmark = pytest.mark.cold_start
SHORT = {"num_episodes": 3, "max_episode_steps": 100}
SHORT_DQN = DQN | {"num_env_steps": 500}  # it learns at every step


def write_config(path: Path, learner: dict[str, Any], **others: Any) -> Path:
    import yaml

    values = {"name": "pole", "runs_dir": str(path), "task": {"env": "CartPole-v1"}, "learner": learner, "evaluation": SHORT}
    path.mkdir(parents=True, exist_ok=True)
    (path / "pole.yaml").write_text(yaml.safe_dump(values | {"checkpoint": {"every_num_env_steps": 250}} | others))
    return path / "pole.yaml"


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """Without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.endswith("_per_s")} for line in lines]


def weights_of(run: Path) -> list[bytes]:
    newest = max((run / "checkpoints").glob("step-*"))
    arrays = load_file(newest / "rllib.safetensors")
    return [array.tobytes() for name, array in arrays.items() if "/learner/" in name]


def cut_short(monkeypatch: pytest.MonkeyPatch, *, at_step: int) -> None:
    """Until it is undone, iterations beyond the step fail."""
    iterate = RLlibTraining.iterate

    def broken(training: RLlibTraining) -> dict[str, float]:
        if training.num_env_steps > at_step:
            raise OSError("the disk broke")
        return iterate(training)

    monkeypatch.setattr(RLlibTraining, "iterate", broken)


@pytest.mark.usefixtures("ray_to_join")
def test_recorded_episodes_are_learned_from_and_a_cut_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = SHORT | {"record_episodes": True}
    teacher = commands.run_training(
        load_run_config(write_config(tmp_path / "teacher", PPO | {"num_env_steps": 300}, evaluation=evaluation))
    )
    before, after = (teacher / "evaluation" / "environment" / f"{name}_episodes.safetensors" for name in ("before", "after"))
    assert before.exists()
    learner = MARWIL | {"input_": [str(before), str(after)]}
    whole = commands.run_training(load_run_config(write_config(tmp_path / "whole", learner)))
    assert read_summary(whole)["state"] == "completed"
    assert read_summary(whole)["after"]["num_episodes"] == 3
    assert metrics_of(whole)[-1]["step"] >= 600
    cut_short(monkeypatch, at_step=300)
    with pytest.raises(Exception, match="the disk broke"):
        commands.run_training(load_run_config(write_config(tmp_path / "cut", learner)))
    monkeypatch.undo()
    cut = commands.resume_run(tmp_path / "cut" / "pole", [], fresh=False)
    assert metrics_of(cut) == metrics_of(whole)
    assert weights_of(cut) == weights_of(whole)
    cloned = commands.run_training(load_run_config(write_config(tmp_path / "cloned", BC | {"input_": [str(teacher)]})))
    assert read_summary(cloned)["state"] == "completed"


@pytest.mark.usefixtures("ray_to_join")
def test_actions_that_are_numbers_are_learned(tmp_path: Path) -> None:
    task = {"env": "Pendulum-v1"}
    run = commands.run_training(load_run_config(write_config(tmp_path, SAC | {"num_env_steps": 300}, task=task)))
    summary = read_summary(run)
    assert summary["state"] == "completed"
    assert summary["after"]["return_mean"] < 0


@pytest.mark.usefixtures("ray_to_join")
def test_a_run_that_dies_goes_on_as_if_it_had_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = commands.run_training(load_run_config(write_config(tmp_path / "whole", PPO)))
    summary = read_summary(whole)
    assert summary["state"] == "completed"
    assert list(summary["wall_s"]) == ["evaluate before", "train", "evaluate after"]
    assert summary["after"]["num_episodes"] == 3
    assert (whole / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "An episode, before and after" in (whole / "report.html").read_text()
    assert set(list_runs(tmp_path / "whole")[0]["result"]) == {"return_before", "return_after"}

    cut_short(monkeypatch, at_step=int(0.6 * PPO["num_env_steps"]))
    with pytest.raises(Exception, match="the disk broke"):
        commands.run_training(load_run_config(write_config(tmp_path / "cut", PPO)))
    monkeypatch.undo()
    cut = commands.resume_run(tmp_path / "cut" / "pole", [], fresh=False)
    assert metrics_of(cut) == metrics_of(whole)
    assert weights_of(cut) == weights_of(whole)
    assert read_summary(cut)["after"] == summary["after"]


@pytest.mark.usefixtures("ray_to_join")
def test_the_best_policy_on_the_way_is_kept_across_a_break(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And, with a replay buffer as well, the run goes on as if there had been none."""
    evaluation = SHORT | {"every_num_env_steps": 100, "num_interim_episodes": 4, "keep": "best"}
    evaluated: list[Any] = []  # the weights that a policy was asked for
    policy = RLlibTraining.policy

    def watched(training: RLlibTraining, env: Any, **named: Any) -> Any:
        evaluated.append(named["weights"])
        return policy(training, env, **named)

    monkeypatch.setattr(RLlibTraining, "policy", watched)
    whole = commands.run_training(load_run_config(write_config(tmp_path / "whole", SHORT_DQN, evaluation=evaluation)))
    returns = {
        line["step"]: line["episode/evaluated_return_mean"]
        for line in metrics_of(whole)
        if "episode/evaluated_return_mean" in line
    }
    best = read_summary(whole)["best"]
    assert len(returns) == 5
    assert best["return_mean"] == max(returns.values()) == returns[best["env_step"]]
    arrays = load_file(max((whole / "checkpoints").glob("step-*")) / "rllib.safetensors")
    kept = {array.tobytes() for name, array in arrays.items() if "/world/best/" in name}
    assert kept == {array.tobytes() for array in evaluated[-1].values()}
    assert evaluated[:-1] == [None] * 6  # before, and what was learned so far

    with monkeypatch.context() as patch:
        cut_short(patch, at_step=300)
        with pytest.raises(Exception, match="the disk broke"):
            commands.run_training(load_run_config(write_config(tmp_path / "cut", SHORT_DQN, evaluation=evaluation)))
    cut = commands.resume_run(tmp_path / "cut" / "pole", [], fresh=False)
    assert metrics_of(cut) == metrics_of(whole)
    assert weights_of(cut) == weights_of(whole)
    assert read_summary(cut)["best"] == best
    assert read_summary(cut)["after"] == read_summary(whole)["after"]
    assert "the best of those evaluated on the way" in (cut / "report.html").read_text()


def test_a_resume_may_give_up_the_best_policy(tmp_path: Path) -> None:
    kept = {"best": {"env_step": 100, "return_mean": 9.0, "weights": {}}}
    for keep, state in (("best", kept), ("last", {})):
        evaluation = SHORT | {"every_num_env_steps": 100, "keep": keep}
        config = load_run_config(write_config(tmp_path, SHORT_DQN, evaluation=evaluation))
        assert isinstance(config, RLlibRunConfig)
        world = GymnasiumWorld(config)
        world.restore(kept)
        assert world.state() == state


@pytest.mark.usefixtures("no_ray")
def test_a_lost_learner_costs_the_steps_since_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = PPO | {"num_learners": 1, "num_cpus_per_learner": 0.5}
    whole = commands.run_training(load_run_config(write_config(tmp_path / "whole", learner)))
    iterate = RLlibTraining.iterate
    killed: list[int] = []

    def hurt(training: RLlibTraining) -> dict[str, float]:
        if training.num_env_steps > 600 and not killed:
            found = training._algorithm.learner_group.foreach_learner(lambda learner: os.getpid())
            killed.extend(each.get() for each in found)
            os.kill(killed[0], signal.SIGKILL)
        return iterate(training)

    monkeypatch.setattr(RLlibTraining, "iterate", hurt)
    hurt_run = commands.run_training(load_run_config(write_config(tmp_path / "hurt", learner)))
    assert killed
    assert read_summary(hurt_run)["state"] == "completed"
    assert metrics_of(hurt_run) == metrics_of(whole)
    assert weights_of(hurt_run) == weights_of(whole)


@pytest.mark.usefixtures("no_ray")
def test_an_environment_that_raises_ends_the_run_with_its_message(tmp_path: Path) -> None:
    task = {"env": "tests.learners.environments.failing:Mistaken-v0", "options": {"fails_at_step": 50}}
    config = load_run_config(write_config(tmp_path, PPO | {"num_env_runners": 1}, task=task))
    with pytest.raises(EnvironmentFailedError, match="ZeroDivisionError in step: the wind has no speed"):
        commands.run_training(config)
    summary = read_summary(tmp_path / "pole")
    assert summary["state"] == "failed"
    assert "ZeroDivisionError" in summary["error"]


@pytest.mark.usefixtures("ray_to_join")
def test_another_network_cannot_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_short(monkeypatch, at_step=300)
    with pytest.raises(Exception, match="the disk broke"):
        commands.run_training(load_run_config(write_config(tmp_path, PPO)))
    with pytest.raises(CannotResumeError, match="written under other facts: network was"):
        commands.resume_run(tmp_path / "pole", ["learner.network.fcnet_hiddens=[8]"], fresh=False)
