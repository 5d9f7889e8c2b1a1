"""Settings of tasks and scorers: what is wrong is told with its path, all at once."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from actors import config
from actors.config import GeneratorConfig, HttpScorerConfig, PythonScorerConfig, RewardModelScorerConfig
from cluster.config import parse_config
from cluster.errors import ConfigError
from learners.settings.run import PolicyRunConfig

URL = "http://localhost:8000/score"


def run(*, task: dict[str, Any] | None = None, scorers: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {
        "name": "trial",
        "model": "tiny",
        "task": task or {"kind": "arithmetic", "max_prompt_tokens": 16},
        "sampling": {"samples_per_prompt": 2, "max_completion_tokens": 16},
        "generator": {"max_model_tokens": 1024},
        "scorers": scorers or [{"kind": "function", "function": "first_number"}],
        "learner": {"algorithm": "ppo", "num_steps": 2, "prompts_per_step": 4, "minibatch_size": 8},
    }


@pytest.mark.parametrize(
    "task",
    [
        {"kind": "arithmetic"},
        {"kind": "reasoning_gym", "dataset": "chain_sum", "options": {"max_terms": 3}},
        {"kind": "gsm8k", "path": "train.jsonl"},
        {"kind": "ifeval", "path": "input_data.jsonl", "unsupported": "drop"},
    ],
)
def test_every_kind_of_task_can_be_set(task: dict[str, Any]) -> None:
    assert parse_config(PolicyRunConfig, run(task=task), source="here").task.kind == task["kind"]


def test_scorers_of_every_kind_stand_side_by_side() -> None:
    scorers: list[dict[str, Any]] = [
        {"kind": "function", "function": "ifeval"},
        {"kind": "python", "name": "mine", "path": "operator:truth", "weight": 0.5},
        {"kind": "http", "name": "judge", "url": URL, "weight": -1},
    ]
    config = parse_config(PolicyRunConfig, run(scorers=scorers), source="here")
    assert [(scorer.name, scorer.weight) for scorer in config.scorers] == [("ifeval", 1.0), ("mine", 0.5), ("judge", -1.0)]


def test_a_configuration_survives_being_written_and_read() -> None:
    scorers = [{"kind": "http", "url": URL}, {"kind": "python", "path": "operator:truth"}]
    config = parse_config(PolicyRunConfig, run(scorers=scorers), source="here")
    assert parse_config(PolicyRunConfig, config.model_dump(mode="json"), source="again") == config


@pytest.mark.parametrize(
    ("task", "problem"),
    [
        ({"kind": "gsm8k"}, "task.path: required, but not given"),
        ({"kind": "gsm8k", "path": "x", "instructions": "y"}, "task.instructions: unknown key; did you mean 'instruction'?"),
        ({"kind": "ifeval", "path": "x", "unsupported": "skip"}, "task.unsupported: Input should be 'error' or 'drop'"),
        ({"kind": "arithmetic", "operations": ["/"]}, "task.operations.0: Input should be '+', '-' or '*'"),
        ({"kind": "arithmetic", "max_operand": 1}, "task: num_train + num_held_out + num_examples = 1100, but there are only 4"),
        ({"kind": "reasoning_gym"}, "task.dataset: required, but not given"),
        ({"kind": "reasoning_gym", "dataset": "x", "options": {"seed": 1}}, "task.options: seed cannot be set here"),
    ],
)
def test_a_task_that_cannot_be_is_refused(task: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(PolicyRunConfig, run(task=task), source="here")
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(f"here: {problem}")


@pytest.mark.parametrize(
    ("scorer", "problem"),
    [
        ({"kind": "python"}, "scorers.0.path: required"),
        (
            {"kind": "python", "path": "json:laods"},
            "scorers.0.path: module 'json' has no 'laods'; did you mean 'loads'?",
        ),
        ({"kind": "python", "path": "nothing_like_it:f"}, "scorers.0.path: there is no module 'nothing_like_it'"),
        ({"kind": "python", "path": "truth"}, "scorers.0.path: is neither package.module:function nor an entry point"),
        ({"kind": "python", "path": "operator:truth", "timeout_s": 0}, "scorers.0.timeout_s: "),
        ({"kind": "http"}, "scorers.0.url: required"),
        ({"kind": "http", "url": "localhost"}, "scorers.0.url: "),
        ({"kind": "http", "url": "file:///etc/passwd"}, "scorers.0.url: URL scheme should be 'http' or 'https'"),
        ({"kind": "http", "url": "http://me:word@localhost/"}, "scorers.0.url: names a user or a password"),
        ({"kind": "http", "url": URL, "headers_from_env": {"A": "NOT_SET_IN_A_TEST"}}, "scorers.0.headers_from_env: environment"),
        ({"kind": "http", "url": URL, "max_retries": -1}, "scorers.0.max_retries: "),
        (
            {"kind": "http", "url": "http://10.0.0.1/"},
            "scorers.0: url names the host '10.0.0.1', which is not one of allowed_hosts",
        ),
    ],
)
def test_a_scorer_that_cannot_work_is_refused(scorer: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(PolicyRunConfig, run(scorers=[scorer]), source="here")
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(f"here: {problem}")


def test_all_problems_come_at_once() -> None:
    scorers: list[dict[str, Any]] = [
        {"kind": "python", "path": "nothing_like_it:f", "timeout": 3},
        {"kind": "http", "url": "ftp://localhost/"},
        {"kind": "function", "function": "finalnumber"},
    ]
    with pytest.raises(ConfigError) as caught:
        parse_config(PolicyRunConfig, run(task={"kind": "gsm8k"}, scorers=scorers), source="here")
    paths = {problem.split(": ")[1] for problem in caught.value.problems}
    assert paths == {"task.path", "scorers.0.path", "scorers.0.timeout", "scorers.1.url", "scorers.2.function"}


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "http://localhost.example.com/",
        "http://127.0.0.1.example.com/",
        "http://example.com\\@127.0.0.1/",
        "http://169.254.169.254/latest/meta-data",
        "http://[::ffff:10.0.0.1]/",
        "http://0.0.0.0/",
        "http://2852039166/",  # 169.254.169.254
    ],
)
def test_only_loopback_is_allowed_by_default(url: str) -> None:
    with pytest.raises(ValueError, match="not one of allowed_hosts"):
        HttpScorerConfig.model_validate({"url": url})


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "https://LocalHost/a?b=c", "http://[::1]:80/", "http://2130706433/"])
def test_loopback_may_be_asked(url: str) -> None:
    assert HttpScorerConfig.model_validate({"url": url})


def test_a_host_that_is_named_may_be_asked_and_gets_secrets_over_https_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_TOKEN", "x")
    settings = {"allowed_hosts": ["judge.example.com"], "headers_from_env": {"Authorization": "JUDGE_TOKEN"}}
    assert HttpScorerConfig.model_validate({**settings, "url": "https://judge.example.com/score"})
    with pytest.raises(ValueError, match="would travel unencrypted to 'judge.example.com'; use https"):
        HttpScorerConfig.model_validate({**settings, "url": "http://judge.example.com/score"})


def test_nothing_of_the_user_runs_when_settings_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "explosive_of_a_test.py").write_text("def score(trajectory): ...\nraise RuntimeError\n")
    monkeypatch.chdir(tmp_path)
    assert PythonScorerConfig(path="explosive_of_a_test:score").timeout_s == 10.0


@pytest.mark.parametrize(
    ("num_gpus", "given", "expected"),
    [
        (0, {}, (True, 64, 256, 0.9)),
        (1, {}, (False, 256, 4096, 0.9)),
        (0.5, {}, (False, 256, 4096, 0.45)),  # 0.9 of half a device
        (1, {"enforce_eager": True, "max_num_sequences": 8}, (True, 8, 4096, 0.9)),
    ],
)
def test_the_defaults_of_an_engine_follow_its_device(num_gpus: float, given: dict[str, Any], expected: tuple[Any, ...]) -> None:
    config = GeneratorConfig.model_validate({"num_gpus": num_gpus, **given})
    found = (config.enforce_eager, config.max_num_sequences, config.max_model_tokens, config.gpu_memory_utilization)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("num_gpus", [0.5, 1.0])
def test_an_engine_on_two_devices_needs_two(num_gpus: float) -> None:
    with pytest.raises(ValidationError, match="tensor_parallel_size=2 needs as many GPUs"):
        GeneratorConfig(num_gpus=num_gpus, tensor_parallel_size=2)
    assert GeneratorConfig(num_gpus=0.5).num_gpus == 0.5


@pytest.mark.parametrize(
    ("num_gpus", "instructions", "dtype"), [(0, True, "bfloat16"), (0, False, "float32"), (0.5, False, "bfloat16")]
)
def test_the_default_type_follows_the_device(
    num_gpus: float, instructions: bool, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "multiplies_bfloat16", lambda: instructions)
    assert GeneratorConfig(num_gpus=num_gpus).dtype == dtype
    assert RewardModelScorerConfig(model="judge", num_gpus=num_gpus).dtype == dtype
    assert GeneratorConfig(num_gpus=num_gpus, dtype="float16").dtype == "float16"
