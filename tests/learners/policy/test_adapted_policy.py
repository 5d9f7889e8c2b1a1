"""A policy that learns by an adapter: what is trained, what it is compared with, kept and published. Tiny model, float32."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from cluster.errors import CannotResumeError
from cluster.storage.serving_contract import ContractText, check_files, read_contract
from cluster.storage.weight_file import check_weights
from cluster.types import AdapterFile, ScoredBatch
from learners.policy import commands
from learners.policy.handle import LearnerFolders, PolicyLearnerHandle
from learners.policy.learner import PolicyLearner
from learners.policy.serving_contract import text_logprobs
from learners.policy.start import StartingPoint
from learners.ranks.handle import RanksHandle
from learners.ranks.mailbox import CheckpointPlan
from learners.settings.policy import PolicyLearnerConfig

ConfigBuilder = Callable[..., PolicyLearnerConfig]
BatchBuilder = Callable[..., ScoredBatch]

LORA = {"lora": {"rank": 8}}
TEXTS = (ContractText(text="abc", token_ids=(97, 98, 99)),)
PROBE = (97, 98, 99, 100, 101)


def learner_of(model: str, config: PolicyLearnerConfig) -> PolicyLearner:
    start = StartingPoint(model_path=model, temperature=1.0, max_completion_tokens=8, samples_per_prompt=1, seed=0)
    return PolicyLearner(start, config)


def test_adapter_and_value_head_learn_and_nothing_else(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder
) -> None:
    learner = learner_of(tiny_model, ppo_config(**LORA))
    before = {name: parameter.clone() for name, parameter in learner._network.named_parameters()}
    learner.update(scored_batch())
    after = dict(learner._network.named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if ".lora_" in name or name.startswith("value_head.")}
    assert {name for name, parameter in after.items() if parameter.grad is not None} == moved


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
@pytest.mark.parametrize("num_frozen_layers", [0, 1])
def test_the_reference_is_the_start_as_a_second_model_would_be(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder, algorithm: str, num_frozen_layers: int
) -> None:
    fields = {"algorithm": algorithm, "num_frozen_layers": num_frozen_layers, "minibatch_size": 8}
    learner, plain = (learner_of(tiny_model, ppo_config(**fields, **extra)) for extra in (LORA, {}))
    assert learner.start_kl(scored_batch().groups) == (0.0,) * 8
    first = learner.update(scored_batch(group_size=4)).metrics
    assert first["policy/ref_kl_nats_per_completion"] == 0
    batch = scored_batch(step=1)
    groups = [scored.group for scored in batch.groups]
    own, start = learner.completion_logprobs(groups), plain.completion_logprobs(groups)
    expected = [float((mine - theirs).sum()) for mine, theirs in zip(own, start, strict=True)]
    assert max(map(abs, expected)) > 1e-3
    assert learner.start_kl(batch.groups) == pytest.approx(expected, abs=1e-5)


def test_in_bfloat16_the_start_is_its_own_reference(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder
) -> None:
    assert learner_of(tiny_model, ppo_config(compute_dtype="bfloat16", **LORA)).start_kl(scored_batch().groups) == (0.0,) * 8


def test_an_own_critic_has_an_adapter_of_its_own(tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder) -> None:
    learner = learner_of(tiny_model, ppo_config(critic={"kind": "own_model"}, **LORA))
    before = {name: tensor.clone() for name, tensor in learner._optimizer.parameters.items()}
    for step in range(2):
        learner.update(scored_batch(step=step))
    parts = {name.partition(".")[0] for name in before}
    assert parts == {"policy", "critic_trunk", "value_head"}
    assert all(".lora_" in name for name in before if not name.startswith("value_head."))
    assert all(not torch.equal(before[name], tensor) for name, tensor in learner._optimizer.parameters.items())


@pytest.mark.parametrize("critic", ["value_head", "own_model"])
def test_a_checkpoint_holds_what_is_trained_and_is_gone_on_from_exactly(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder, critic: str
) -> None:
    config = ppo_config(critic={"kind": critic}, **LORA)
    learner = learner_of(tiny_model, config)
    learner.update(scored_batch(step=0))
    snapshot = learner.snapshot()
    kept = {name for name in snapshot.tensors if not name.startswith(("optimizer/", "random_state/"))}
    assert kept == {name.replace(".", "/", 1) for name in learner._optimizer.parameters}
    learner.update(scored_batch(step=1))
    resumed = learner_of(tiny_model, config)
    resumed.restore(snapshot)
    resumed.update(scored_batch(step=1))
    expected, found = learner.snapshot(), resumed.snapshot()
    assert found.numbers == expected.numbers
    assert found.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.tensors.items())


def test_a_checkpoint_of_whole_weights_is_refused(tiny_model: str, ppo_config: ConfigBuilder) -> None:
    with pytest.raises(CannotResumeError, match="the checkpoint's policy does not fit the configuration"):
        learner_of(tiny_model, ppo_config(**LORA)).restore(learner_of(tiny_model, ppo_config()).snapshot())


def test_an_adapter_is_published_with_what_it_does_to_a_probe(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder, tmp_path: Path
) -> None:
    learner = learner_of(tiny_model, ppo_config(learning_rate=1e-2, **LORA))
    start = learner.publish(tmp_path, "bfloat16", PROBE)
    assert isinstance(start, AdapterFile)
    assert start.policy_version == 0
    assert start.probe.logprobs == start.probe.start_logprobs
    start_file = tmp_path / "kept.safetensors"
    start_file.hardlink_to(start.weights.path)
    learner.update(scored_batch())
    published = learner.publish(tmp_path, "bfloat16", PROBE)
    assert isinstance(published, AdapterFile)
    assert {path.name for path in tmp_path.iterdir()} == {"policy-v000002.safetensors", start_file.name}
    check_weights(published.weights)
    assert published.probe.max_mismatch == 0.1
    probe = published.probe
    assert probe.contexts == (PROBE[:2], PROBE[:3], PROBE[:4], PROBE)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    for policy, likely in ((plain, probe.start_logprobs), (learner._network.policy, probe.logprobs)):
        for context, numbers in zip(probe.contexts, likely, strict=True):
            with torch.no_grad():
                expected_V = policy(torch.tensor([context])).logits[0, -1].log_softmax(-1)
            assert len(numbers) == 64
            assert numbers == pytest.approx({token: float(expected_V[token]) for token in numbers}, abs=1e-5)
    first, first_at_start = probe.logprobs[0], probe.start_logprobs[0]
    assert first.keys() == first_at_start.keys()
    assert max(abs(first[token] - first_at_start[token]) for token in first) > 1e-3
    again = learner_of(tiny_model, ppo_config(**LORA))  # of ranks that were lost: the folder is there
    again.restore(learner.snapshot())
    assert again.publish(tmp_path, "bfloat16", PROBE).checksum == published.checksum


def test_an_export_is_the_merged_policy_or_the_adapter(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder, tmp_path: Path
) -> None:
    learner = learner_of(tiny_model, ppo_config(learning_rate=1e-2, **LORA))
    learner.update(scored_batch())
    assert learner.export(tmp_path / "merged", "float32", TEXTS) == ""
    assert learner.export(tmp_path / "adapter", "float32", TEXTS, "adapter") == ""
    for name in ("merged", "adapter"):
        contract = read_contract(tmp_path / name)
        assert contract is not None
        check_files(tmp_path / name, contract)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert text_logprobs(exported, PROBE, learner._settings) == pytest.approx(
        text_logprobs(learner._network.policy, PROBE, learner._settings), abs=1e-5
    )
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "serving_contract.json"} <= names
    assert not names & {"model.safetensors", "config.json"}
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == tiny_model


def test_ranks_are_told_the_probe_and_what_to_export(ppo_config: ConfigBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[object, ...]] = []
    monkeypatch.setattr(RanksHandle, "_new_mailbox", lambda handle: None)
    monkeypatch.setattr(RanksHandle, "call", lambda handle, call, meanwhile=None: told.append((call.function, *call.arguments)))
    handle = PolicyLearnerHandle(
        StartingPoint(model_path="folder", temperature=1.0, max_completion_tokens=8, samples_per_prompt=1, seed=0),
        ppo_config(**LORA),
        LearnerFolders(
            storage=Path("/storage"), weights=Path("/weights"), weights_dtype="bfloat16", exported="adapter", probe=PROBE
        ),
        CheckpointPlan(directory=Path("/checkpoints"), keep=1, facts={}),
    )
    handle.publish()
    handle.export(Path("/policy"), TEXTS)
    assert told == [
        (commands.publish, Path("/weights"), "bfloat16", PROBE),
        (commands.export, Path("/policy"), "bfloat16", TEXTS, "adapter"),
    ]
