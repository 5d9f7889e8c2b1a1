"""Memory of each role, against numbers computed by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.config import GeneratorConfig
from actors.sources.models import resolve_model
from cluster.errors import DataError
from cluster.types import ScoredBatch
from learners.run.memory_estimate import (
    local_model_shape,
    model_shape,
    policy_learner_memory,
    published_bytes,
    reward_model_learner_memory,
)
from learners.run.plan import plan_run
from learners.settings.policy import PolicyLearnerConfig
from learners.settings.reward_model import RewardModelLearnerConfig
from learners.settings.training import LoRAConfig
from tests.learners.run.sized_runs import (
    REFERENCE_BYTES,
    SMALL_LLAMA,
    SMALL_LLAMA_PARAMETERS,
    SMOLLM2,
    ppo_config,
    reward_model_config,
    write_model,
)

pytestmark = pytest.mark.usefixtures("empty_cache")


def test_parameters_of_a_small_model() -> None:
    shape = model_shape(SMALL_LLAMA)
    assert shape is not None
    assert shape.total == SMALL_LLAMA_PARAMETERS
    assert shape.kv_values_per_token == 2 * 3 * 1 * 2  # keys and values, 3 layers, 1 head of 2


@pytest.mark.parametrize(
    ("changes", "added"),
    [
        ({"tie_word_embeddings": False}, 40),
        ({"attention_bias": True}, 3 * (4 + 2 + 2 + 4)),
        ({"mlp_bias": True}, 3 * (8 + 8 + 4)),
        ({"model_type": "qwen2"}, 3 * (4 + 2 + 2)),
        ({"model_type": "qwen3"}, 3 * (2 + 2)),
        ({"num_key_value_heads": None}, 3 * 4 * (2 + 2)),
    ],
)
def test_what_variants_add(changes: dict[str, Any], added: int) -> None:
    shape = model_shape({**SMALL_LLAMA, **changes})
    assert shape is not None
    assert shape.total == SMALL_LLAMA_PARAMETERS + added


def test_the_quickstart_model_has_its_published_size() -> None:
    shape = model_shape(SMOLLM2)
    assert shape is not None
    assert shape.total == 134_515_008


def test_transformers_counts_the_same() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    for changes in (
        {},
        {"tie_word_embeddings": False},
        {"attention_bias": True},
        {"model_type": "qwen2"},
        {"model_type": "qwen3", "head_dim": 2},
    ):
        config = {**SMALL_LLAMA, **changes}
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
        shape = model_shape(config)
        assert shape is not None
        assert shape.total == sum(parameter.numel() for parameter in model.parameters()), changes


def test_memory_of_each_role(empty_cache: Path) -> None:
    write_model(empty_cache / "models" / "small", SMALL_LLAMA)
    learner, generator, scorer, function = plan_run(ppo_config())["memory"]
    assert learner["parts_bytes"] == {
        "policy": 16 * 500,  # float32 weights, gradients and two Adam moments
        "critic": 16 * 5,  # a head of 4 weights and a bias
        "reference": REFERENCE_BYTES,
        "logits": 16 * 10 * 4,  # 16 positions, 10 words, float32
        "kept_states": 0,
    }
    assert learner["bytes_each"] == 8000 + 80 + REFERENCE_BYTES + 640
    assert learner["bytes"] == 2 * learner["bytes_each"]
    assert generator["parts_bytes"] == {"weights": 2 * 500, "kv_cache": 2**29}
    assert scorer["parts_bytes"] == {"weights": 2 * 504}
    assert function["bytes"] == 0


def test_how_many_sequences_the_cache_holds(empty_cache: Path) -> None:
    write_model(empty_cache / "models" / "small", SMALL_LLAMA)
    # 12 values of 2 bytes a token, 32 tokens: 768 bytes a sequence
    assert plan_run(ppo_config())["batch"]["sequences_in_kv_cache"] == 2**29 // 768


def test_an_own_critic_is_a_second_trunk(empty_cache: Path) -> None:
    write_model(empty_cache / "models" / "small", SMALL_LLAMA)
    learner = ppo_config().learner.model_dump() | {"critic": {"kind": "own_model"}}
    memory = plan_run(ppo_config(learner=learner))["memory"][0]
    assert memory["parts_bytes"]["critic"] == 16 * (500 + 5)


def test_a_method_without_a_critic_has_none_in_memory(empty_cache: Path) -> None:
    write_model(empty_cache / "models" / "small", SMALL_LLAMA)
    learner = {"algorithm": "reinforce_plus_plus", **ppo_config().learner.model_dump(include={"num_steps", "prompts_per_step"})}
    memory = plan_run(ppo_config(learner={**learner, "minibatch_size": 8}))["memory"][0]
    assert memory["parts_bytes"]["critic"] == 0


def test_a_sharded_rank_has_its_part_and_what_is_gathered(empty_cache: Path) -> None:
    write_model(empty_cache / "models" / "small", SMALL_LLAMA)
    learner = ppo_config().learner.model_dump(exclude={"workers"}) | {
        "num_frozen_layers": 1,
        "workers": {"num_workers": 4, "sharding": "hybrid", "shard_group_size": 2, "logprob_chunk_tokens": 16},
    }
    whole = plan_run(ppo_config(learner=learner | {"workers": {"num_workers": 4, "logprob_chunk_tokens": 16}}))["memory"][0]
    parts = plan_run(ppo_config(learner=learner))["memory"][0]["parts_bytes"]
    assert parts == {
        **{name: whole["parts_bytes"][name] // 2 for name in ("policy", "critic", "reference")},
        "logits": whole["parts_bytes"]["logits"],
        "kept_states": 0,
        # The embedding of 40, the norm of 4, the value head of 5 and a layer of 152: weights and gradients in float32.
        "gathered": 8 * (40 + 4 + 5 + 152),
    }


def test_what_a_sharded_rank_offloads_is_counted_on_the_host(empty_cache: Path) -> None:
    write_model(empty_cache / "models" / "small", SMALL_LLAMA)
    workers = {"num_workers": 2, "num_gpus": 1, "sharding": "full", "compute_dtype": "bfloat16"}
    learner = ppo_config().learner.model_dump(exclude={"workers"})
    kept, offloaded = (
        plan_run(ppo_config(learner=learner | {"workers": workers | {"offload": offload}}))["memory"][0]
        for offload in ("none", "cpu")
    )
    on_host = sum(kept["parts_bytes"][name] for name in ("policy", "critic", "reference"))
    assert on_host > 0
    assert (kept["offloaded"], kept["host_bytes"]) == ([], 0)
    assert offloaded["parts_bytes"] == kept["parts_bytes"]
    assert offloaded["host_bytes_each"] == on_host
    assert offloaded["host_bytes"] == 2 * on_host
    assert offloaded["bytes_each"] == kept["bytes_each"] - on_host  # the logits, and what is gathered

    (reward_model,) = plan_run(reward_model_config(workers=workers | {"offload": "cpu"}))["memory"]
    assert reward_model["host_bytes_each"] == sum(reward_model["parts_bytes"][name] for name in ("weights", "optimizer"))
    assert reward_model["bytes_each"] == reward_model["parts_bytes"]["gathered"]


def test_a_sharded_reward_model_has_its_part(empty_cache: Path) -> None:
    write_model(empty_cache / "models" / "small", SMALL_LLAMA)
    (memory,) = plan_run(reward_model_config(workers={"num_workers": 3, "sharding": "full"}))["memory"]
    assert memory["parts_bytes"] == {"weights": 4 * 504 // 3, "optimizer": 12 * 504 // 3, "gathered": 8 * (40 + 4 + 4 + 152)}


def test_frozen_layers_need_no_optimizer_state(empty_cache: Path) -> None:
    write_model(empty_cache / "models" / "small", SMALL_LLAMA)
    (all_trained,) = plan_run(reward_model_config())["memory"]
    assert all_trained["parts_bytes"] == {"weights": 4 * 504, "optimizer": 12 * 504}
    (partly,) = plan_run(reward_model_config(num_frozen_layers=2))["memory"]
    assert partly["parts_bytes"] == {
        "weights": 4 * (504 - 2 * 144) + 2 * 2 * 144,
        "optimizer": 12 * (504 - 40 - 2 * 152),
    }


@pytest.mark.parametrize("head", [0, 40])
def test_frozen_layers_of_a_policy_are_not_trained_and_their_matrices_are_smaller(empty_cache: Path, head: int) -> None:
    write_model(empty_cache / "models" / "small", SMALL_LLAMA | {"tie_word_embeddings": not head})
    learner = ppo_config().learner.model_dump() | {"num_frozen_layers": 2}
    parts = plan_run(ppo_config(learner=learner))["memory"][0]["parts_bytes"]
    # 40 of the embedding, and two layers of 152, of which 144 are matrices, in bfloat16.
    assert parts["policy"] == 4 * (500 + head - 2 * 144) + 2 * 2 * 144 + 12 * (500 + head - 40 - 2 * 152)
    assert parts["reference"] == REFERENCE_BYTES + 4 * head


@pytest.mark.parametrize(
    ("num_prompts", "kept_bytes"),
    [
        (1, 24 * 32 * 4 * 4),  # a step: 6 prompts x 4 samples, 20 + 12 tokens, 4 float32 numbers
        (50, 50 * 32 * 4 * 4),  # an evaluation is larger
        (2_000_000, 2**29),  # no more than the learner keeps
    ],
)
def test_states_above_frozen_layers_are_kept_for_the_largest_batch(empty_cache: Path, num_prompts: int, kept_bytes: int) -> None:
    write_model(empty_cache / "models" / "small", SMALL_LLAMA)
    config = ppo_config(
        learner=ppo_config().learner.model_dump() | {"num_frozen_layers": 1},
        evaluation={"num_prompts": num_prompts, "samples_per_prompt": 1},
    )
    assert plan_run(config)["memory"][0]["parts_bytes"]["kept_states"] == kept_bytes


def test_a_reference_that_moves_is_a_copy_beside_that_of_the_start(empty_cache: Path) -> None:
    write_model(empty_cache / "models" / "small", SMALL_LLAMA)
    learner = ppo_config().learner.model_dump() | {"kl": {"refresh_reference_steps": 2}}
    assert plan_run(ppo_config(learner=learner))["memory"][0]["parts_bytes"]["reference"] == 2 * REFERENCE_BYTES


@pytest.mark.parametrize("num_frozen_layers", [0, 1])
@pytest.mark.parametrize("fields", [{}, {"kl": {"refresh_reference_steps": 2}}, {"lora": {"rank": 16}}])
def test_a_learner_holds_the_bytes_that_were_estimated(
    num_frozen_layers: int, fields: dict[str, Any], scored_batch: Callable[..., ScoredBatch]
) -> None:
    from learners.network.models import Reference
    from learners.policy.learner import PolicyLearner
    from learners.policy.start import StartingPoint

    config = PolicyLearnerConfig.model_validate(
        {
            "algorithm": "grpo",
            "num_steps": 1,
            "prompts_per_step": 1,
            "minibatch_size": 1,
            "num_frozen_layers": num_frozen_layers,
            **fields,
        }
    )
    folder = resolve_model("tiny")
    learner = PolicyLearner(
        StartingPoint(model_path=folder, temperature=1.0, max_completion_tokens=4, samples_per_prompt=1, seed=0), config
    )
    groups = scored_batch(3).groups
    num_tokens = sum(sum(sample.segment_lengths) for scored in groups for sample in scored.samples)
    parts = policy_learner_memory(local_model_shape(folder), None, config, batch_tokens=num_tokens).parts
    assert parts is not None
    learner.start_kl(groups)
    kept = [states_SD for of_row in learner._frozen_states._kept.values() for states_SD in of_row]
    assert parts["kept_states"] == sum(states.numel() * states.element_size() for states in kept)
    trained = sum(parameter.numel() for parameter in learner._optimizer.parameters.values())
    assert parts["policy"] == _bytes_of(learner._network.policy) + 12 * trained
    references = {id(each): each for each in (learner._reference, learner._start_policy) if isinstance(each, Reference)}.values()
    assert parts["reference"] == sum(_bytes_of(reference.policy) for reference in references)


def test_adapters_alone_have_gradients_and_moments(empty_cache: Path) -> None:
    write_model(empty_cache / "models" / "small", SMALL_LLAMA)
    config = ppo_config()
    lora = {"rank": 8, "target_modules": ["v_proj", "down_proj"]}
    learner = config.learner.model_dump() | {"lora": lora, "num_frozen_layers": 1, "critic": {"kind": "own_model"}}
    ranks, generator, *_ = plan_run(ppo_config(learner=learner))["memory"]
    of_a_layer = 8 * ((4 + 2) + (4 + 8))  # v: 4 in, 2 out; down: 8 in, 4 out
    assert ranks["parts_bytes"]["policy"] == REFERENCE_BYTES + 16 * 2 * of_a_layer
    assert ranks["parts_bytes"]["critic"] == REFERENCE_BYTES + 16 * (3 * of_a_layer + 4 + 1)
    assert ranks["parts_bytes"]["reference"] == 0
    every_matrix = (4 + 4) + 2 * (4 + 2) + (4 + 4) + 3 * (4 + 8)
    assert generator["parts_bytes"]["adapters"] == 2 * 2 * 3 * 8 * every_matrix  # two of them, in bfloat16


def test_the_adapter_of_a_reward_model_is_trained_with_its_head(empty_cache: Path) -> None:
    shape = model_shape(SMALL_LLAMA)
    values = {"num_layers": 2, "num_frozen_layers": 1, "lora": {"rank": 8, "target_modules": ["q_proj"]}}
    config = RewardModelLearnerConfig.model_validate(values | {"workers": {"compute_dtype": "bfloat16"}})
    parts = reward_model_learner_memory(shape, config).parts
    adapter = 8 * (4 + 4)  # of one layer
    assert parts == {
        "weights": 2 * 2 * 144 + 4 * (40 + 2 * 8 + 4 + 4 + adapter),  # the last 4 of these are the head's
        "optimizer": 12 * (adapter + 4),
    }


def _bytes_of(model: torch.nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def test_a_model_is_found_by_its_folder(tmp_path: Path) -> None:
    assert local_model_shape(str(write_model(tmp_path / "mine", SMALL_LLAMA))) == model_shape(SMALL_LLAMA)


def test_other_architectures_are_not_guessed() -> None:
    assert model_shape({"model_type": "gpt2"}) is None


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"model_type": "llama"}', '{"model_type": "llama", "hidden_size": "x", "vocab_size": 1}']
)
def test_a_broken_model_folder_is_named(content: str, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "config.json").write_text(content)
    with pytest.raises(DataError, match=r"config\.json"):
        local_model_shape(str(folder))


def test_two_versions_of_the_weights_lie_in_shared_memory() -> None:
    shape = model_shape(SMALL_LLAMA)
    assert published_bytes(shape, GeneratorConfig(dtype="bfloat16"), None) == 2 * 2 * 500
    assert published_bytes(shape, GeneratorConfig(weight_transfer="nccl", num_gpus=1), None) == 0
    assert published_bytes(None, GeneratorConfig(), None) == 0
    # rank 8 on the query's 4x4 and the up projection's 8x4 of three layers, in float32
    lora = LoRAConfig(rank=8, target_modules=("q_proj", "up_proj"))
    assert published_bytes(shape, GeneratorConfig(dtype="bfloat16"), lora) == 2 * 4 * 3 * 8 * (8 + 12)
