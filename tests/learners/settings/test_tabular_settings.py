"""Settings of runs in environments: what is refused, and what a schedule says."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.errors import ConfigError
from learners.settings.environments.tabular import ScheduleConfig
from learners.settings.run import PlanningRunConfig, TabularRunConfig, load_run_config

LAKE = {"kind": "gymnasium", "env": "FrozenLake-v1"}


def load(tmp_path: Path, learner: dict[str, Any], **others: Any) -> Any:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"name": "lake", "task": LAKE, "learner": learner, **others}))
    return load_run_config(path)


@pytest.mark.parametrize("algorithm", ["monte_carlo", "q_learning", "sarsa", "expected_sarsa", "tabular_reinforce"])
def test_methods_that_learn_from_episodes(tmp_path: Path, algorithm: str) -> None:
    assert isinstance(load(tmp_path, {"algorithm": algorithm, "num_episodes": 3}), TabularRunConfig)


@pytest.mark.parametrize("algorithm", ["value_iteration", "policy_iteration"])
def test_methods_that_plan(tmp_path: Path, algorithm: str) -> None:
    assert isinstance(load(tmp_path, {"algorithm": algorithm}), PlanningRunConfig)


Q = {"algorithm": "q_learning", "num_episodes": 3}


@pytest.mark.parametrize(
    ("learner", "others", "said"),
    [
        ({"algorithm": "q_learning"}, {}, "learner.num_episodes: required"),
        ({**Q, "num_episodes": 0}, {}, "learner.num_episodes: .*greater than or equal to 1"),
        ({**Q, "gamma": 1.0}, {}, "learner.gamma: .*less than 1"),
        ({**Q, "gamma": 0.0}, {}, "learner.gamma: .*greater than 0"),
        ({**Q, "epsilon": {"start": 1.5}}, {}, "learner.epsilon.start: .*less than or equal to 1"),
        ({**Q, "epsilon": {"end": 0.5}}, {}, "learner.epsilon.start: required"),
        ({**Q, "epsilon": {"start": 1.0, "end": -0.5}}, {}, "learner.epsilon.end: .*greater than or equal to 0"),
        ({**Q, "epsilon": {"start": 1.0, "over_num_episodes": 5}}, {}, "over_num_episodes=5 has no meaning without end"),
        ({**Q, "epsilon": {"start": 1.0, "end": 0.0, "over_num_episodes": 0}}, {}, "over_num_episodes: .*equal to 1"),
        ({**Q, "step_size": {"start": 2.0}}, {}, "learner.step_size.start: .*less than or equal to 1"),
        ({**Q, "tolerance": 1e-3}, {}, "learner.tolerance: unknown key"),
        ({**Q, "value_step_size": 0.1}, {}, "learner.value_step_size: unknown key"),
        ({"algorithm": "monte_carlo", "num_episodes": 3, "step_size": {"start": 0.1}}, {}, "learner.step_size: unknown key"),
        ({"algorithm": "tabular_reinforce", "num_episodes": 3, "epsilon": {"start": 0.1}}, {}, "learner.epsilon: unknown key"),
        ({"algorithm": "tabular_reinforce", "num_episodes": 3, "value_step_size": 0}, {}, "value_step_size: .*greater than 0"),
        ({"algorithm": "value_iteration", "num_episodes": 3}, {}, "learner.num_episodes: unknown key"),
        ({"algorithm": "value_iteration", "tolerance": 0}, {}, "learner.tolerance: .*greater than 0"),
        ({"algorithm": "policy_iteration", "max_sweeps": 0}, {}, "learner.max_sweeps: .*greater than or equal to 1"),
        ({"algorithm": "value_iteration"}, {"checkpoint": {"every_num_episodes": 3}}, "checkpoint: unknown key"),
        (Q, {"model": "tiny"}, "model: unknown key"),
        (Q, {"dashboard": True}, "dashboard: unknown key"),
        (Q, {"checkpoint": {"every_num_episodes": 0}}, "checkpoint.every_num_episodes: .*greater than or equal to 1"),
        (Q, {"checkpoint": {"keep": 0}}, "checkpoint.keep: .*greater than or equal to 1"),
        (Q, {"evaluation": {"num_episodes": 0}}, "evaluation.num_episodes: .*greater than or equal to 1"),
        (Q, {"evaluation": {"max_episode_steps": 0}}, "evaluation.max_episode_steps: .*greater than or equal to 1"),
        (Q, {"task": {"kind": "jsonl", "path": "x"}}, "task.kind"),
        (Q, {"task": {**LAKE, "env": ""}}, "task.env: .*at least 1 character"),
        (Q, {"task": {**LAKE, "max_episode_steps": 0}}, "task.max_episode_steps: .*greater than or equal to 1"),
        (Q, {"task": {**LAKE, "options": {"render_mode": "human"}}}, "render_mode cannot be set here"),
        ({**Q, "algorithm": "q_lerning"}, {}, "learner.algorithm: must be one of .*q_learning"),
    ],
)
def test_wrong_input_is_named(tmp_path: Path, learner: dict[str, Any], others: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(tmp_path, learner, **others)


def test_a_schedule_is_a_line_and_then_stays() -> None:
    schedule = ScheduleConfig(start=1.0, end=0.2, over_num_episodes=4)
    assert [schedule.at(episode, num_episodes=100) for episode in (0, 1, 4, 9)] == pytest.approx([1.0, 0.8, 0.2, 0.2])
    assert ScheduleConfig(start=1.0, end=0.0).at(5, num_episodes=10) == 0.5
    assert ScheduleConfig(start=0.3).at(5, num_episodes=10) == 0.3
