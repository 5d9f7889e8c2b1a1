"""Roles that take turns on GPUs: what is refused before anything starts, and the defaults of their engines."""

import io
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from cluster.errors import ConfigError
from cluster.processes.placement import Machine
from learners.run.plan import plan_run, plan_table
from learners.settings.run import PolicyRunConfig, load_run_config

CONFIG = Path(__file__).parents[3] / "configs" / "train" / "tiny.yaml"
SHARED = ["placement=shared", "generator.num_gpus=0.6", "learner.workers.num_gpus=0.3"]


def loaded(*overrides: str) -> PolicyRunConfig:
    config = load_run_config(CONFIG, overrides)
    assert isinstance(config, PolicyRunConfig)
    return config


def test_an_engine_takes_nearly_all_of_its_device_when_it_has_its_turn() -> None:
    generator = loaded(*SHARED).generator
    assert (generator.sleep_level, generator.gpu_memory_utilization) == (1, 0.8)
    own = loaded(*SHARED, "generator.sleep_level=2", "generator.gpu_memory_utilization=0.7").generator
    assert (own.sleep_level, own.gpu_memory_utilization) == (2, 0.7)
    apart = loaded("generator.num_gpus=0.6").generator
    assert (apart.sleep_level, apart.gpu_memory_utilization) == (None, pytest.approx(0.54))


def test_a_written_configuration_loads_again(tmp_path: Path) -> None:
    config = loaded(*SHARED)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_run_config(path) == config


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["placement=shared"], "vLLM's engines sleep on no other device, but generator.num_gpus=0 and"),
        (["placement=shared", "generator.num_gpus=0.6"], "learner.workers.num_gpus=0; on CPUs use separate"),
        ([*SHARED, "generator.num_gpus=0.5"], "more than half for an engine"),
        ([*SHARED, "learner.workers.num_gpus=0.5"], "learner.workers.num_gpus=0.5, scorers together 0;"),
        ([*SHARED, "learner.workers.num_gpus=0.2"], "more than half for an engine"),  # two ranks would find room on one GPU
        (
            [*SHARED, "scorers=[{kind: reward_model, model: x, num_gpus: 0.2}]"],
            "scorers together 0.2; 0.6 and 0.3 leave 0.1 of each for scorers",
        ),
        ([*SHARED, "generator.num_replicas=2"], "generator.num_replicas=2 (at most 2) and learner.workers.num_workers=1"),
        ([*SHARED, "generator.max_replicas=2"], "(at most 2)"),
        ([*SHARED, "generator.weight_transfer=ipc"], "does not go with generator.weight_transfer=ipc; take it out"),
        ([*SHARED, "learner.lora={}"], "does not go with learner.lora; take it out"),
        ([*SHARED, "learner.algorithm=decoupled_ppo", "asynchronous={}"], "generators work while the learner does"),
        (["generator.num_gpus=1", "generator.sleep_level=1"], "generator.sleep_level=1 is for placement=shared; take it out"),
    ],
)
def test_what_cannot_take_turns_is_refused(overrides: list[str], problem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        loaded(*overrides)
    assert problem in str(refused.value)


def test_the_plan_says_that_memory_is_taken_in_turns() -> None:
    console = Console(width=150, record=True, file=io.StringIO())
    for overrides, said in (([], False), (SHARED, True)):
        plan = plan_run(loaded(*overrides), [Machine(num_cpus=4, num_gpus=1)])
        assert plan["takes_turns"] is said
        console.print(plan_table(plan))
        assert ("Roles take turns on their GPUs" in console.export_text()) is said


def test_several_gpus_have_a_rank_and_an_engine_each() -> None:
    config = loaded(*SHARED, "generator.num_replicas=2", "learner.workers.num_workers=2")
    assert config.placement == "shared"
