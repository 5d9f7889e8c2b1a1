"""The plan's arithmetic, against numbers computed by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.errors import ConfigError
from cluster.processes import placement
from cluster.processes.placement import check_placement, this_machine
from learners.run import plan as plan_module
from learners.run.plan import parse_nodes, plan_run, plan_table, role_requests
from learners.settings.run import TrainingRunConfig, load_run_config
from tests.learners.run.sized_runs import (
    SMALL_LLAMA,
    ppo_config,
    reward_model_config,
    write_model,
)

pytestmark = pytest.mark.usefixtures("empty_cache")

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


def test_batch_arithmetic() -> None:
    batch = plan_run(ppo_config())["batch"]
    assert batch["trajectories_per_step"] == 24  # 6 prompts x 4 samples
    assert batch["minibatches_per_epoch"] == 3  # 24 / 8
    assert batch["optimizer_steps_per_step"] == 6  # 2 epochs
    assert batch["optimizer_steps"] == 30  # 5 steps
    assert batch["longest_sequence_tokens"] == 32  # 20 + 12
    assert batch["max_completion_tokens_per_step"] == 288  # 24 x 12
    assert batch["max_tokens_per_step"] == 768  # 24 x 32
    assert batch["sequences_per_micro_batch"] == 3  # 100 // 32


def test_every_role_asks_for_what_its_section_says() -> None:
    requests = {request.role: request for request in role_requests(ppo_config())}
    assert {role: (request.count, request.num_cpus) for role, request in requests.items()} == {
        "learner": (2, 0.5),
        "generator": (2, 0.25),
        "scorer reward_model": (1, 0.5),
        "scorer length": (3, 0.1),
    }
    assert requests["scorer length"].setting == "scorers.1.num_replicas"
    assert plan_run(ppo_config())["placement"]["needed_cpus"] == pytest.approx(2.3)  # 1 + 0.5 + 0.5 + 0.3


def test_settings_that_requests_name_are_real_ones() -> None:
    config = ppo_config()
    for request in role_requests(config):
        node: Any = config
        for part in request.setting.split("."):
            node = node[int(part)] if part.isdigit() else getattr(node, part)
        assert node == request.count


def test_a_plan_that_does_not_fit_says_so_and_does_not_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "this_machine", lambda: placement.Machine(num_cpus=1, num_gpus=0))
    planned = plan_run(ppo_config())
    assert len(planned["placement"]["problems"]) == 1
    assert "does not fit" in rendered(planned)


@pytest.mark.parametrize("name", ["tiny", "reward_model_movie_reviews"])
def test_the_shipped_runs_fit_two_cpus(name: str) -> None:
    config = load_run_config(CONFIGS / "train" / f"{name}.yaml")
    check_placement(role_requests(config), placement.Machine(num_cpus=2, num_gpus=0))


@pytest.mark.parametrize(
    ("export", "written", "kept", "num_at_once"),
    [
        ({}, 1, 1, 1),
        ({"every_num_steps": 2}, 3, 3, 3),  # of 5 steps: after 2, 4 and 5
        ({"every_num_steps": 1, "keep": 2}, 5, 2, 3),  # the third is written before the first is removed
        ({"every_num_steps": 5}, 1, 1, 1),
    ],
)
def test_exported_policies(empty_cache: Path, export: dict[str, int], written: int, kept: int, num_at_once: int) -> None:
    write_model(empty_cache / "models" / "small", SMALL_LLAMA)
    planned = plan_run(ppo_config(export=export))
    assert planned["exports"] == {
        "every_num_steps": export.get("every_num_steps", 0),
        "written": written,
        "kept": kept,
        "bytes_each": 2 * 500,
        "bytes": num_at_once * 2 * 500,
    }
    assert f"{written} written, the newest {kept} kept" in rendered(planned)


def test_a_reward_model_compares_every_pair_of_a_batch() -> None:
    planned = plan_run(reward_model_config())
    assert planned["batch"]["max_pairs_per_optimizer_step"] == 15  # 6 * 5 / 2
    assert planned["batch"]["max_tokens_per_step"] == 60
    assert [role["role"] for role in planned["placement"]["roles"]] == ["learner"]


def test_an_exported_adapter_takes_its_own_bytes(empty_cache: Path) -> None:
    write_model(empty_cache / "models" / "small", SMALL_LLAMA)
    lora = {"rank": 8, "target_modules": ["q_proj"]}
    learner = ppo_config().learner.model_dump() | {"lora": lora, "num_frozen_layers": 1}
    exports = plan_run(ppo_config(learner=learner, export={"weights": "adapter"}))["exports"]
    assert exports["bytes"] == 4 * 2 * 8 * (4 + 4)  # float32, two layers


def test_a_model_that_is_not_here_has_no_memory_estimate() -> None:
    planned = plan_run(ppo_config())
    assert [role["bytes"] for role in planned["memory"]] == [None, None, None, 0]
    assert planned["batch"]["sequences_in_kv_cache"] is None
    assert "unknown" in rendered(planned)


@pytest.mark.parametrize("config", [ppo_config(), reward_model_config()], ids=["ppo", "reward_model"])
def test_a_plan_is_json_and_has_a_table(config: TrainingRunConfig) -> None:
    planned = plan_run(config)
    assert json.loads(json.dumps(planned, allow_nan=False)) == planned
    assert planned["placement"]["available_cpus"] == this_machine().num_cpus
    assert "Placement" in rendered(planned)


def rendered(planned: dict[str, Any]) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(plan_table(planned))
    return capture.get()


def test_the_table_has_a_column_for_what_is_offloaded(empty_cache: Path) -> None:
    write_model(empty_cache / "models" / "small", SMALL_LLAMA)
    learner = ppo_config().learner.model_dump(exclude={"workers"})
    sharded = {"num_workers": 2, "num_gpus": 1, "sharding": "full"}
    for offload in ("cpu", "none"):
        text = rendered(plan_run(ppo_config(learner=learner | {"workers": sharded | {"offload": offload}})))
        assert ("on the host" in text) == (offload == "cpu")


@pytest.mark.parametrize(("backend", "num_gpus"), [("nccl", 1.0), ("ipc", 0.5)])
def test_weights_in_parts_do_not_travel_over_devices(backend: str, num_gpus: float) -> None:
    learner = ppo_config().learner.model_dump(exclude={"workers"})
    workers = {"num_workers": 2, "sharding": "full", "num_gpus": num_gpus}
    with pytest.raises(ValueError, match=f"weight_transfer={backend} .*but learner.workers.sharding=full leaves none"):
        ppo_config(learner=learner | {"workers": workers}, generator={"weight_transfer": backend, "num_gpus": num_gpus})


def workers(**changes: Any) -> dict[str, Any]:
    """A learner with these ranks."""
    learner = {"algorithm": "ppo", "num_steps": 5, "prompts_per_step": 6, "minibatch_size": 8}
    return learner | {"workers": {"micro_batch_tokens": 100} | changes}


def test_a_plan_for_several_nodes_says_what_each_of_them_holds() -> None:
    config = ppo_config(learner=workers(num_workers=2, num_cpus=1.0), generator={"num_replicas": 2, "num_cpus": 0.75})
    placement = plan_run(config, parse_nodes(["2", "3,1"]))["placement"]
    assert [(node["name"], node["num_cpus"], node["num_gpus"]) for node in placement["nodes"]] == [
        ("node 1", 2.0, 0.0),
        ("node 2", 3.0, 1.0),
    ]
    held = [node["processes"] for node in placement["nodes"]]
    assert (held[0]["learner"], held[1]["generator"], placement["problems"]) == (2, 2, [])


def test_what_fits_on_no_node_is_a_problem_of_the_plan() -> None:
    placement = plan_run(ppo_config(learner=workers(num_cpus=3.0)), parse_nodes(["2", "2", "2"]))["placement"]
    (problem,) = placement["problems"]
    assert "learner 1 of 1 needs 3 CPUs and 0 GPUs on one node" in problem
    assert [node["processes"] for node in placement["nodes"]] == [{}, {}, {}]


def test_a_node_is_cpus_and_gpus() -> None:
    with pytest.raises(ConfigError) as refused:
        parse_nodes(["4,1", "many", "1,2,3"])
    assert [problem.partition(":")[0] for problem in refused.value.problems] == ["--node many", "--node 1,2,3"]


def test_a_run_with_rllib_plans_its_roles(tmp_path: Path) -> None:
    learner = {
        "algorithm": "rllib_ppo",
        "num_env_steps": 100,
        "num_env_runners": 3,
        "num_learners": 2,
        "num_cpus_per_learner": 0.5,
    }
    path = tmp_path / "pole.yaml"
    path.write_text(json.dumps({"name": "pole", "task": {"env": "CartPole-v1"}, "learner": learner}))
    plan = plan_run(load_run_config(path), parse_nodes(["2", "2"]))
    roles = {role["role"]: (role["count"], role["num_cpus"]) for role in plan["placement"]["roles"]}
    assert roles == {"driver": (1, 0.0), "env runner": (3, 1.0), "learner": (2, 0.5)}
    assert [node["processes"] for node in plan["placement"]["nodes"]] == [
        {"env runner": 2, "driver": 1},
        {"env runner": 1, "learner": 2},
    ]
    assert (plan["environments"], plan["env_steps_per_iteration"], plan["ray_processes"]) == (24, 4096, 5)
    assert "env runner" in rendered(plan)
