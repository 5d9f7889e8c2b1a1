"""A sweep as it is asked for: what is refused before anything starts, and what follows from the configuration."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.errors import ConfigError
from learners.run.session import named_variables
from learners.sweep import loading
from learners.sweep.loading import CheckedSweep, grace_steps, load_resolved_sweep, load_sweep

CONFIGS = Path(loading.__file__).parents[2] / "configs" / "train"
TINY, LAKE = CONFIGS / "tiny.yaml", CONFIGS / "q_learning_frozen_lake.yaml"


def load(
    file: Path, grid: Sequence[str] = (), sample: Sequence[str] = (), options: Mapping[str, Any] | None = None
) -> CheckedSweep:
    return load_sweep(file, [], grid, sample, options or {})


@pytest.mark.parametrize(
    ("grid", "sample", "options", "problem"),
    [
        ([], [], {}, "nothing is swept"),
        (["learner.gama=0.9"], [], {}, "learner.gama: unknown key; did you mean 'gamma'"),
        (["learner.gamma=0.9,2"], [], {}, r"learner.gamma: .*less than 1 .*\[with learner.gamma=2\]"),
        ([], ["learner.gamma=uniform(0.5,2)"], {"num_samples": 30}, "learner.gamma: .*less than 1"),
        ([], ["learner.gamma=uniform(0.5,2)"], {"search": "optuna", "num_samples": 3}, r"\[with learner.gamma=2.0\]"),
        ([], ["learner.gamma=normal(0,1)"], {}, "not a distribution"),
        (["learner.gamma=0.9"], ["learner.gamma=uniform(0,1)"], {}, "both --grid and --sample"),
        (["name=a,b"], [], {}, "names its trials and their folder itself"),
        (["learner.gamma=0.9,0.8"], [], {"num_samples": 2}, "repeats the same trials"),
        (["learner.gamma=0.9,0.8"], [], {"grace_steps": 2}, "no meaning without --scheduler asha"),
        (["learner.gamma=0.9,0.8"], [], {"metric": "score"}, "metric"),
        (["learner.gamma=0.9,0.8"], [], {"scheduler": "asha", "metric": "after/return_mean"}, "use episode/discounted"),
    ],
)
def test_bad_input_is_refused(grid: list[str], sample: list[str], options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load(LAKE, grid, sample, options)


def test_a_value_that_is_wrong_in_many_trials_is_told_a_few_times() -> None:
    with pytest.raises(ConfigError) as caught:
        load(LAKE, [f"seed={','.join(map(str, range(20)))}", "learner.gamma=0.9,2"])
    assert len(caught.value.problems) == 9
    assert caught.value.problems[-1] == "and 12 more"
    with pytest.raises(ConfigError) as caught:
        load(LAKE, ["learner.gamma=2,3"])
    assert len(caught.value.problems) == 1


def test_an_end_that_no_draw_meets_is_no_problem() -> None:
    assert len(load(LAKE, sample=["learner.gamma=uniform(0,0.99)"], options={"num_samples": 3}).points) == 3


@pytest.mark.parametrize(
    ("file", "at_the_end", "on_the_way"),
    [
        ("tiny", "after/score_mean", "score/mean"),
        ("reward_model_movie_reviews", "reward_model/accuracy", "reward_model/train_accuracy"),
        ("q_learning_frozen_lake", "after/return_mean", "episode/discounted_return_mean"),
        ("value_iteration_frozen_lake", "after/return_mean", "planning/start_value"),
        ("ppo_cartpole", "after/return_mean", "episode/return_mean"),
    ],
)
def test_the_metric_follows_the_configuration(file: str, at_the_end: str, on_the_way: str) -> None:
    path = CONFIGS / f"{file}.yaml"
    assert load(path, ["seed=0,1"]).config.metric == at_the_end
    asha = {"scheduler": "asha", "grace_steps": 2}
    assert load(path, ["seed=0,1"], options=asha).config.metric == on_the_way
    assert load(path, ["seed=0,1"], options={"metric": "policy/version"}).config.metric == "policy/version"


def test_the_largest_trial_decides_how_many_fit() -> None:
    checked = load(TINY, ["generator.num_replicas=1,3,2"])
    assert checked.has_roles
    assert [request.count for request in checked.requests if request.role == "generator"] == [3]
    assert not load(LAKE, ["seed=0,1"]).has_roles


def test_a_driver_that_learns_itself_takes_a_cpu() -> None:
    """RLlib without learner processes reserves none, and eight such trials would share two cores."""
    checked = load(CONFIGS / "ppo_cartpole.yaml", ["seed=0,1"], options={"runs_dir": "elsewhere"})
    assert checked.has_roles
    assert sum(request.total_cpus for request in checked.requests) >= 1
    assert sum(request.total_cpus for request in load(LAKE, ["seed=0,1"]).requests) == 1


def test_a_run_that_plans_needs_a_grace_for_asha() -> None:
    with pytest.raises(ConfigError, match="give --grace-steps"):
        load(CONFIGS / "value_iteration_frozen_lake.yaml", ["learner.gamma=0.9,0.99"], options={"scheduler": "asha"})


def test_the_grace_is_a_share_of_a_run() -> None:
    checked = load(LAKE, ["learner.gamma=0.9,0.99"], options={"scheduler": "asha"})  # 4,000 episodes
    assert grace_steps(checked.config, checked.compared) == 250  # 4,000 / 4^2
    given = load(LAKE, ["learner.gamma=0.9,0.99"], options={"scheduler": "asha", "grace_steps": 7, "reduction_factor": 2})
    assert grace_steps(given.config, given.compared) == 7


def test_a_search_that_finds_its_trials_lists_none() -> None:
    checked = load(LAKE, sample=["learner.gamma=uniform(0.8,0.99)"], options={"search": "optuna", "num_samples": 5})
    assert (checked.points, checked.num_trials) == ((), 5)


def test_a_sweep_comes_back_from_its_directory(tmp_path: Path) -> None:
    checked = load(LAKE, ["learner.gamma=0.9,0.99"], ["learner.step_size.start=loguniform(0.01,0.5)"])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(checked.config.model_dump(mode="json")))
    assert load_resolved_sweep(tmp_path, []) == checked
    more = load_resolved_sweep(tmp_path, ["num_samples=2"])
    assert more.points[:2] == checked.points
    assert len(more.points) == 4


def test_trials_start_from_the_file_as_it_was(tmp_path: Path) -> None:
    """Not from the resolved configuration, in which a preset's values would stand beside another algorithm."""
    checked = load_sweep(TINY, ["learner.num_steps=2"], ["learner.algorithm=ppo,grpo"], [], {})
    assert checked.config.training["learner"] == {**yaml.safe_load(TINY.read_text())["learner"], "num_steps": 2}


def test_variables_that_scorers_of_trials_name_are_collected() -> None:
    config = load(TINY, ["seed=0,1"]).config
    scorers = [{"kind": "http", "headers_from_env": {"Authorization": "KEY"}}, {"kind": "python", "environment": ["OWN"]}]
    assert named_variables(config.model_copy(update={"training": {"scorers": scorers}})) == ["KEY", "OWN"]
