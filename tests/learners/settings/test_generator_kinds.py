"""One kind of engines, or several that go together."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.errors import ConfigError
from cluster.processes.placement import Machine
from learners.run.plan import plan_run
from learners.run.seating import LEARNER, seats_at_start
from learners.run.sizing.scale_request import scalable_roles
from learners.settings.run import PolicyRunConfig, QuickstartConfig, load_run_config

CONFIGS = Path(__file__).parents[3] / "configs"
LARGE: dict[str, Any] = {"name": "large", "num_gpus": 2, "tensor_parallel_size": 2, "max_num_sequences": 128, "num_cpus": 1}
SMALL: dict[str, Any] = {"name": "small", "num_gpus": 1, "num_replicas": 2, "max_replicas": 4, "num_cpus": 0.5}


def loaded(*overrides: str) -> PolicyRunConfig:
    config = load_run_config(CONFIGS / "train" / "tiny.yaml", overrides)
    assert isinstance(config, PolicyRunConfig)
    return config


def values_of(**kinds: Any) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((CONFIGS / "train" / "tiny.yaml").read_text())
    del values["generator"]
    return {**values, **kinds}


def test_kinds_are_planned_seated_and_scaled_each_by_its_name() -> None:
    config = PolicyRunConfig.model_validate(values_of(generators=[LARGE, SMALL]))
    assert config.generator_kinds == config.generators
    assert config.generator == config.generators[0]
    seats = seats_at_start(config)
    assert list(seats) == [LEARNER, "large 0", "small 0", "small 1", "scorer length 0"]
    assert (seats["large 0"], seats["small 1"]) == (({"CPU": 1.0, "GPU": 2.0},), ({"CPU": 0.5, "GPU": 1.0},))
    assert list(scalable_roles(config)) == ["generators.large", "generators.small", "scorers.length"]
    nodes = [Machine(num_cpus=4, num_gpus=2, name="node 1"), Machine(num_cpus=4, num_gpus=2, name="node 2")]
    plan = plan_run(config, nodes)
    assert plan["placement"]["problems"] == []
    assert [node["processes"] for node in plan["placement"]["nodes"]] == [
        {"large": 1, "learner": 1, "scorer length": 1},
        {"small": 2},
    ]
    assert [memory["role"] for memory in plan["memory"]] == ["learner", "large", "small", "scorer length"]


def test_an_engine_is_on_one_node_unless_it_may_be_spread() -> None:
    spread = {"devices": "any_node", "weight_transfer": "nccl"}
    workers = {"learner": {**values_of()["learner"], "workers": {"num_gpus": 1}}}
    nodes = [Machine(num_cpus=4, num_gpus=1, name=f"node {number}") for number in (1, 2, 3)]
    whole = plan_run(PolicyRunConfig.model_validate(values_of(generator={**LARGE, "weight_transfer": "nccl"}, **workers)), nodes)
    [problem] = whole["placement"]["problems"]
    assert problem.startswith("placement: large 1 of 1 needs 1 CPUs and 2 GPUs on one node")
    parts = plan_run(PolicyRunConfig.model_validate(values_of(generator={**LARGE, **spread}, **workers)), nodes)
    assert parts["placement"]["problems"] == []
    assert [node["processes"] for node in parts["placement"]["nodes"]] == [
        {"learner": 1, "scorer length": 1},
        {"large (1/2)": 1},
        {"large (1/2)": 1},
    ]


def test_a_written_configuration_has_one_of_the_two_and_loads_again(tmp_path: Path) -> None:
    config = PolicyRunConfig.model_validate(values_of(generators=[LARGE, SMALL]))
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert "generator" not in yaml.safe_load(path.read_text())
    again = load_run_config(path, ["generators.0.num_replicas=2"])
    assert isinstance(again, PolicyRunConfig)
    assert again.generator.num_replicas == 2
    assert again.generators[1] == config.generators[1]
    assert "generators" in loaded().model_dump()
    assert "generator" in loaded().model_dump()


def test_a_quickstart_may_have_several_kinds() -> None:
    values = yaml.safe_load((CONFIGS / "quickstart_small.yaml").read_text())
    kind = values["policy"].pop("generator")
    values["policy"]["generators"] = [{**kind, "name": "one"}, {**kind, "name": "two", "max_num_sequences": 16}]
    assert [kind.name for kind in QuickstartConfig.model_validate(values).policy_run().generator_kinds] == ["one", "two"]


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["generators=[{name: a}]"], "generator and generators are both set"),
        (["generator={}", "generators=3"], "generators"),
    ],
)
def test_one_of_the_two_is_set(overrides: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        loaded(*overrides)


@pytest.mark.parametrize(
    ("kinds", "problem"),
    [
        ([{"name": "a"}, {"name": "a"}], "two kinds share a name: ['a', 'a']"),
        ([{"name": "a", "dtype": "float32"}, {"name": "b", "dtype": "bfloat16"}], "but dtype is float32, bfloat16"),
        (
            [{"name": "a", "num_gpus": 1}, {"name": "b", "num_gpus": 1, "weight_transfer": "nccl"}],
            "but weight_transfer is shm, nccl",
        ),
        ([{"name": "a"}, {"name": "b", "max_model_tokens": 50}], "generators.1.max_model_tokens=50 is less than the longest"),
        ([{"name": "scorer x"}], "name"),
    ],
)
def test_kinds_that_do_not_go_together_are_refused(kinds: list[dict[str, Any]], problem: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - pydantic's own, with the text that is compared
        PolicyRunConfig.model_validate(values_of(generators=kinds))
    assert problem in str(refused.value)


@pytest.mark.parametrize(
    "generator",
    [
        {"devices": "any_node", "num_gpus": 2, "tensor_parallel_size": 2},  # a file does not reach the other node
        {"devices": "any_node", "num_gpus": 4, "tensor_parallel_size": 2, "weight_transfer": "nccl"},
    ],
)
def test_a_spread_engine_needs_nccl_and_one_device_a_part(generator: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="devices=any_node needs weight_transfer=nccl"):
        PolicyRunConfig.model_validate(values_of(generator=generator))
