"""Bad configuration is refused with the path of every problem; overrides mean what people type."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.config import load_config, parse_config, read_yaml
from cluster.errors import ConfigError
from learners.settings.run import PolicyRunConfig, QuickstartConfig, load_run_config

ROOT = Path(__file__).resolve().parents[2]


def valid_run() -> dict[str, Any]:
    return {
        "name": "trial",
        "model": "tiny",
        "task": {"kind": "movie_reviews", "max_prompt_tokens": 16},
        "sampling": {"samples_per_prompt": 2, "max_completion_tokens": 16},
        "generator": {"max_model_tokens": 64},
        "scorers": [{"kind": "function", "function": "length"}],
        "learner": {"algorithm": "ppo", "num_steps": 2, "prompts_per_step": 4, "minibatch_size": 8},
    }


def write_run(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def setting(dotted: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A mutation that puts `value` at the path; a section on the way that is not there is made."""

    def mutate(values: dict[str, Any]) -> None:
        *parents, last = dotted.split(".")
        node: Any = values
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        node[last] = value

    return mutate


def without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda values: values.pop(key)


MUTANTS = [
    (without("name"), "name: required"),
    (without("model"), "model: required"),
    (without("task"), "task: required"),
    (without("scorers"), "scorers: required"),
    (setting("nmae", "x"), "nmae: unknown key; did you mean 'name'?"),
    (setting("zzz", 1), "zzz: unknown key; known keys: asynchronous, checkpoint, dashboard"),
    (setting("learner.policy_loss.clip_epsilon", 0.2), "learner.policy_loss.clip_epsilon: unknown key; did you mean 'clip_eps'?"),
    (
        setting("learner.optimizer.learning_rat", 0.1),
        "learner.optimizer.learning_rat: unknown key; did you mean 'learning_rate'?",
    ),
    (setting("task.num_prompt_wrods", 3), "task.num_prompt_wrods: unknown key; did you mean 'num_prompt_words'?"),
    (setting("task.path", "x.jsonl"), "task.path: unknown key"),
    (setting("task.kind", "movies"), "task: "),
    (setting("scorers.0.wieght", 2), "scorers.0.wieght: unknown key; did you mean 'weight'?"),
    (setting("scorers.0.function", "lenght"), "scorers.0.function: Input should be 'length'"),
    (setting("scorers.0.weight", float("nan")), "scorers.0.weight: Input should be a finite number"),
    (setting("scorers", []), "scorers: "),
    (setting("scorers", [{"kind": "function", "function": "vader"}] * 2), "scorers: two scorers share a name"),
    *(
        (
            setting("scorers", [{"kind": "python", "name": name, "path": "json:dumps"}]),
            f"scorers: a scorer is named {name!r}, but the metric score/",
        )
        for name in ("sampled", "greedy")
    ),
    (setting("name", "../escape"), "name: "),
    (setting("name", "a" * 65), "name: "),
    (setting("seed", -1), "seed: "),
    (setting("learner.num_steps", "many"), "learner.num_steps: "),
    (setting("learner.num_steps", 0), "learner.num_steps: "),
    (setting("learner.policy_loss.clip_eps", 1.5), "learner.policy_loss.clip_eps: "),
    (setting("learner.advantage.gamma", 0), "learner.advantage.gamma: "),
    (setting("learner.workers", 2), "learner.workers: "),
    (setting("learner.critic.model", "tiny"), "learner: critic.model='tiny' has no meaning"),
    (setting("learner.algorithm", "ppoo"), "learner.algorithm: must be one of cispo, dapo, decoupled_ppo"),
    (setting("learner", []), "learner.algorithm: "),
    (setting("generator.dtype", "int8"), "generator.dtype: "),
    (setting("generator.weight_transfer", "nccl"), "generator: weight_transfer='nccl' needs GPUs"),
    (setting("sampling.top_p", 0), "sampling.top_p: "),
    (setting("sampling.temperature", 0), "sampling.temperature=0"),
    (setting("learner.minibatch_size", 3), "learner.minibatch_size=3 must divide the batch of 8 trajectories"),
    (setting("learner.workers.num_workers", 9), "learner.minibatch_size=8 leaves some of the 9 workers"),
    (setting("learner.workers.sharding", "full"), "learner.workers: sharding=full needs ranks to deal the model to"),
    (
        setting("learner.workers", {"num_workers": 4, "sharding": "hybrid"}),
        "learner.workers: sharding=hybrid needs shard_group_size",
    ),
    *(
        (
            setting("learner.workers", {"num_workers": 4, "sharding": "hybrid", "shard_group_size": size}),
            f"learner.workers: shard_group_size={size} must divide num_workers=4 into two groups or more",
        )
        for size in (3, 4, 8)
    ),
    *(
        (
            setting("learner.workers", {"num_workers": 4, "sharding": sharding, "shard_group_size": 2}),
            f"learner.workers: shard_group_size=2 has no meaning with sharding={sharding}",
        )
        for sharding in ("none", "full")
    ),
    (setting("learner.workers.offload", "cpu"), "learner.workers: offload=cpu moves parts of the model out of GPUs"),
    (
        setting("learner.workers", {"num_workers": 2, "sharding": "full", "offload": "cpu"}),
        "learner.workers: offload=cpu moves parts of the model out of GPUs, but the ranks have num_gpus=0",
    ),
    (
        setting("learner.workers", {"num_workers": 2, "num_gpus": 1, "offload": "cpu"}),
        "learner.workers: offload=cpu moves the parts of a sharded learner, but sharding=none",
    ),
    (setting("generator.max_model_tokens", 31), "generator.max_model_tokens=31 is less than the longest sequence, 32"),
    (setting("learner.workers.micro_batch_tokens", 31), "learner.workers.micro_batch_tokens=31 is less than one sequence, 32"),
]


def test_the_file_that_the_mutants_start_from_is_valid(tmp_path: Path) -> None:
    config = load_run_config(write_run(tmp_path, valid_run()))
    assert isinstance(config, PolicyRunConfig)
    assert config.learner.minibatch_size == 8


@pytest.mark.parametrize(("mutate", "expected"), MUTANTS, ids=[expected[:40] for _, expected in MUTANTS])
def test_every_mutant_is_refused_with_file_and_path(
    mutate: Callable[[dict[str, Any]], None], expected: str, tmp_path: Path
) -> None:
    values = valid_run()
    mutate(values)
    path = write_run(tmp_path, values)
    with pytest.raises(ConfigError) as caught:
        load_run_config(path)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(f"{path}: {expected}")


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    values = valid_run()
    for mutate in (
        setting("seed", "x"),
        setting("learner.gamma", 2),
        setting("sampling.top_q", 1),
        setting("scorers.0.weight", "x"),
    ):
        mutate(values)
    with pytest.raises(ConfigError) as caught:
        load_run_config(write_run(tmp_path, values))
    paths = {problem.split(": ")[1] for problem in caught.value.problems}
    assert paths == {"seed", "learner.gamma", "sampling.top_q", "scorers.0.weight"}


def test_invalid_entries_are_not_reported_as_an_empty_list() -> None:
    values = valid_run()
    values["scorers"] = [{"kind": "function", "function": "nothing"}]
    with pytest.raises(ConfigError) as caught:
        parse_config(PolicyRunConfig, values, source="here")
    assert [problem.split(": ")[1] for problem in caught.value.problems] == ["scorers.0.function"]


def test_several_impossible_pairs_are_all_named(tmp_path: Path) -> None:
    overrides = ["learner.minibatch_size=3", "generator.max_model_tokens=8", "sampling.temperature=0"]
    with pytest.raises(ConfigError) as caught:
        load_run_config(write_run(tmp_path, valid_run()), overrides)
    text = str(caught.value)
    assert "minibatch_size=3" in text
    assert "max_model_tokens=8" in text
    assert "temperature=0" in text


def test_a_quickstart_that_cannot_work_is_explained_in_our_words() -> None:
    path = ROOT / "configs" / "quickstart_small.yaml"
    with pytest.raises(ConfigError) as caught:
        load_config(QuickstartConfig, path, ["policy.learner.minibatch_size=5"])
    assert caught.value.problems == [
        f"{path}: policy: learner.minibatch_size=5 must divide the batch of 16 trajectories (8 prompts x 2 samples)"
    ]


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("learner.optimizer.learning_rate=1e-5", ("learner", "optimizer", "learning_rate"), 1e-5),
        ("learner.num_steps=1e2", ("learner", "num_steps"), 100),
        ("scorers.0.weight=-0.5", ("scorers", 0, "weight"), -0.5),
        ("scorers.0={kind: function, function: vader}", ("scorers", 0, "function"), "vader"),
        ("learner.advantage.whiten=false", ("learner", "advantage", "whiten"), False),
        ("learner.optimizer.betas=[0.8, 0.9]", ("learner", "optimizer", "betas"), (0.8, 0.9)),
        ("evaluation.num_prompts=4", ("evaluation", "num_prompts"), 4),
        ("model=./folder=odd", ("model",), "./folder=odd"),
    ],
)
def test_overrides(override: str, path: tuple[str | int, ...], value: object, tmp_path: Path) -> None:
    node: Any = load_run_config(write_run(tmp_path, valid_run()), [override])
    for part in path:
        node = node[part] if isinstance(part, int) else getattr(node, part)
    assert node == value


def test_the_last_override_wins(tmp_path: Path) -> None:
    assert load_run_config(write_run(tmp_path, valid_run()), ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("seed", "expected key=value"),
        ("=3", "expected key=value"),
        ("seed={", "not valid YAML"),
        ("scorers.7.weight=1", "'7' does not lead to a section"),
        ("scorers.1={}", "'1' is not an index into a list of 1"),
        ("scorers.first=1", "'first' is not an index"),
        ("seed.deeper=1", "seed is a value, not a section"),
        ("name.a.b=1", "'a' does not lead to a section"),
    ],
)
def test_bad_overrides_are_quoted(override: str, problem: str, tmp_path: Path) -> None:
    values = {**valid_run(), "seed": 0}
    with pytest.raises(ConfigError) as caught:
        load_run_config(write_run(tmp_path, values), [override, "also bad"])
    assert len(caught.value.problems) == 2
    assert caught.value.problems[0].startswith(f"override {override!r}: ")
    assert problem in caught.value.problems[0]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"name: [unclosed", "not valid YAML"),
        (b"name: \xff\xfe", "not valid YAML"),
        (b"\x00", "not valid YAML"),
        (b"!!python/object/apply:os.system ['true']", "not valid YAML"),
        (b"- a\n- b\n", "the top level is a list"),
        (b"just text", "the top level is a str"),
        (b"", "learner.algorithm: must be one of"),
    ],
)
def test_files_that_are_no_configuration(content: bytes, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_run_config(path)
    assert caught.value.problems[0].startswith(f"{path}: ")
    assert problem in str(caught.value)


def test_keys_that_are_not_text_are_refused() -> None:
    with pytest.raises(ConfigError, match="here: 1: "):
        parse_config(PolicyRunConfig, {**valid_run(), 1: 2}, source="here")  # type: ignore[dict-item]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.yaml", tmp_path):
        with pytest.raises(ConfigError, match="no such configuration file"):
            read_yaml(path)


def test_values_never_change_after_loading(tmp_path: Path) -> None:
    config = load_run_config(write_run(tmp_path, valid_run()))
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3  # type: ignore[misc]
