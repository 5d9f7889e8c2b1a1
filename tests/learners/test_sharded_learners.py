"""A learner in parts on several ranks learns what a whole one learns. In float32, over gloo, in processes."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, LlamaConfig

from cluster.errors import DataError
from cluster.storage.checkpoint import CheckpointFolder
from cluster.storage.policy_folders import ADAPTER_WEIGHTS
from cluster.storage.serving_contract import ContractText, check_files, read_contract
from cluster.types import AdapterFile, ScoredBatch, WeightFile
from learners.network.sharding import Shard, whole
from learners.policy import commands
from learners.policy.learner import PolicyLearner
from learners.policy.start import StartingPoint
from learners.ranks.checkpoint import LearnerSnapshot, checkpoint_writer, read_snapshot, restore_newest
from learners.ranks.loop import Worker
from learners.ranks.mailbox import CheckpointPlan
from learners.reward_model.learner import RewardModelLearner
from learners.reward_model.records import ComparedTexts, RatedTexts, RewardModelJob
from learners.settings.policy import PolicyLearnerConfig
from learners.settings.reward_model import RewardModelLearnerConfig
from tests.learners.process_ranks import ProcessRanks

pytestmark = pytest.mark.cold_start

ConfigBuilder = Callable[..., PolicyLearnerConfig]
BatchBuilder = Callable[..., ScoredBatch]
Weights = dict[str, Tensor]

FACTS = {"model": "abc"}
WAYS: dict[str, dict[str, Any]] = {
    "one rank": {},
    "replicated": {"num_workers": 4},
    "sharded": {"num_workers": 4, "sharding": "full"},
    "two sharded": {"num_workers": 2, "sharding": "full"},
    "hybrid": {"num_workers": 4, "sharding": "hybrid", "shard_group_size": 2},
    "packed": {"num_workers": 2, "sharding": "full", "packing": "packed"},
}
METHODS: dict[str, dict[str, Any]] = {
    "ppo": {"critic": {"warmup_steps": 1, "whiten_returns": True}},
    "own critic": {"critic": {"kind": "own_model"}},
    "grpo with KL": {"algorithm": "grpo"},
    "frozen layer": {"num_frozen_layers": 1},
    "recomputed activations": {"activation_checkpointing": True},
    "adapter": {"lora": {"rank": 8}, "critic": {"kind": "own_model"}},
}


UNDER_OTHER_KERNELS = ("ppo", "adapter")  # the others would take minutes for each kernel, and sum the same way


@pytest.fixture(scope="module")
def ranks() -> Iterator[ProcessRanks]:
    with ProcessRanks(4) as processes:
        yield processes


def learner_of(rank: int, num_ranks: int, model: str, config: PolicyLearnerConfig) -> PolicyLearner:
    start = StartingPoint(model_path=model, temperature=1.0, max_completion_tokens=8, samples_per_prompt=1, seed=0)
    return PolicyLearner(start, config, rank=rank, world_size=num_ranks)


def weights_of(learner: PolicyLearner) -> Weights:
    """Whole; call it on every rank."""
    return {name: whole(parameter.detach()).clone() for name, parameter in learner._network.named_parameters()}


def trained(
    rank: int, num_ranks: int, model: str, config: PolicyLearnerConfig, batches: Sequence[ScoredBatch]
) -> tuple[Weights, list[dict[str, float]]]:
    learner = learner_of(rank, num_ranks, model, config)
    metrics = [dict(learner.update(batch).metrics) for batch in batches]
    return weights_of(learner), [
        {name: value for name, value in each.items() if not name.startswith("time/")} for each in metrics
    ]


@pytest.fixture(scope="module")
def config_of(ppo_config: ConfigBuilder) -> Callable[[str, str], PolicyLearnerConfig]:
    """Of a method and a way to run it. Packs of few rows, so that ranks have different numbers of them."""

    def build(method: str, way: str) -> PolicyLearnerConfig:
        # An eps far above rounding: Adam divides gradients that are nothing but rounding by themselves, for steps of full size.
        optimizer = {"learning_rate": 1e-4, "weight_decay": 0.1, "eps": 1e-4}
        return ppo_config(**METHODS[method], **WAYS[way], optimizer=optimizer, minibatch_size=8, micro_batch_tokens=24)

    return build


@pytest.fixture(scope="module")
def batches(scored_batch: BatchBuilder) -> list[ScoredBatch]:
    """Nine trajectories each: the last minibatch has one, and three ranks of four go without."""
    return [scored_batch(9, step=step, group_size=3) for step in range(5)]


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[pytest.mark.numeric] * (name in UNDER_OTHER_KERNELS)) for name in METHODS]
)
def test_five_updates_end_in_the_same_weights_however_the_model_lies(
    ranks: ProcessRanks,
    tiny_model: str,
    config_of: Callable[[str, str], PolicyLearnerConfig],
    batches: list[ScoredBatch],
    method: str,
) -> None:
    start, _ = trained(0, 1, tiny_model, config_of(method, "one rank"), [])
    expected, expected_metrics = trained(0, 1, tiny_model, config_of(method, "one rank"), batches)
    moved = max(float((expected[name] - weight).abs().max()) for name, weight in start.items())
    assert moved > 1e-4  # a hundred times what may differ
    for way in ("replicated", "sharded", "hybrid", "packed"):
        config = config_of(method, way)
        for found, metrics in ranks.run(trained, config.workers.num_workers, tiny_model, config, batches):
            assert found.keys() == expected.keys()
            for name, weight in expected.items():
                assert_close(
                    found[name], weight, atol=1e-6, rtol=0, msg=lambda text, name=name, way=way: f"{way}, {name}: {text}"
                )
            assert metrics == [pytest.approx(each, rel=1e-3, abs=1e-5) for each in expected_metrics]


def first_metrics(rank: int, num_ranks: int, model: str, config: PolicyLearnerConfig, batch: ScoredBatch) -> dict[str, float]:
    return dict(learner_of(rank, num_ranks, model, config).update(batch).metrics)


def test_in_bfloat16_policy_and_reference_round_alike(
    ranks: ProcessRanks, ppo_config: ConfigBuilder, batches: list[ScoredBatch], tmp_path: Path
) -> None:
    """Of an untied model with a frozen layer, whose matrices are in bfloat16 beside norms in float32."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 257}
    AutoModelForCausalLM.from_config(LlamaConfig(**sizes, tie_word_embeddings=False)).save_pretrained(tmp_path)
    fields = {"num_frozen_layers": 1, "compute_dtype": "bfloat16", "minibatch_size": 9}
    one, sharded = (ppo_config(**fields, **WAYS[way]) for way in ("one rank", "two sharded"))
    expected = first_metrics(0, 1, str(tmp_path), one, batches[0])
    for found in ranks.run(first_metrics, 2, str(tmp_path), sharded, batches[0]):
        assert found["policy/ref_kl_nats_per_completion"] == 0.0
        for name in ("policy/sampled_entropy", "optim/grad_norm", "value/loss"):
            assert found[name] == pytest.approx(expected[name], rel=0.02)


def gathered_at_layers(
    rank: int, num_ranks: int, model: str, config: PolicyLearnerConfig, batch: ScoredBatch
) -> list[tuple[bool, bool]]:
    """Whether the embeddings are whole when a layer is computed, forwards and backwards; of the lowest layer."""
    learner = learner_of(rank, num_ranks, model, config)
    lowest, embeddings = learner._network.policy.base_model.layers[0], learner._network.policy.get_input_embeddings()
    found: list[tuple[bool, bool]] = []
    lowest.register_forward_hook(lambda *_: found.append((False, not isinstance(embeddings.weight, DTensor))))
    lowest.register_full_backward_pre_hook(lambda *_: found.append((True, not isinstance(embeddings.weight, DTensor))))
    learner.update(batch)
    return found


@pytest.mark.parametrize("method", ["ppo", "own critic"])
def test_a_backward_pass_drops_the_embeddings_before_it_comes_to_the_layers(
    ranks: ProcessRanks,
    tiny_model: str,
    config_of: Callable[[str, str], PolicyLearnerConfig],
    batches: list[ScoredBatch],
    method: str,
) -> None:
    found = ranks.run(gathered_at_layers, 2, tiny_model, config_of(method, "two sharded"), batches[1])
    for rank in found:
        assert set(rank) == {(False, True), (True, False)}


def gone_on(
    rank: int, num_ranks: int, model: str, config: PolicyLearnerConfig, batch: ScoredBatch, source: Path, copy: Path, after: Path
) -> None:
    """From the checkpoint in `source`, if there is one, which is written again to `copy`, through one more update to `after`."""
    learner = learner_of(rank, num_ranks, model, config)
    restore_newest(learner, plan(source), rank=rank, world_size=num_ranks)
    written(learner, copy, rank)
    learner.update(batch)
    written(learner, after, rank)


def plan(directory: Path) -> CheckpointPlan:
    return CheckpointPlan(directory=directory, keep=1, facts=FACTS)


def written(learner: Any, directory: Path, rank: int) -> None:
    writer = checkpoint_writer(plan(directory), learner.shard, rank=rank)
    if writer is not None:
        writer.begin(learner.num_steps_done, learner.snapshot(), policy_version=0)
        report = writer.finish()
        assert report is not None
        assert report.problem == ""


def snapshot_in(directory: Path) -> LearnerSnapshot:
    checkpoint = CheckpointFolder(directory).newest_intact()
    assert checkpoint is not None
    return read_snapshot(checkpoint)


def test_a_run_goes_on_with_other_ranks_and_another_sharding(
    ranks: ProcessRanks,
    tiny_model: str,
    config_of: Callable[[str, str], PolicyLearnerConfig],
    batches: list[ScoredBatch],
    tmp_path: Path,
) -> None:
    ways = ("sharded", "two sharded", "one rank", "hybrid", "replicated")
    source = tmp_path / "none yet"
    for way, batch in zip(ways, batches, strict=True):
        copy, after = tmp_path / f"{way}, copied", tmp_path / f"{way}, gone on"
        config = config_of("ppo", way)
        ranks.run(gone_on, config.workers.num_workers, tiny_model, config, batch, source, copy, after)
        if source.exists():
            expected, found = snapshot_in(source), snapshot_in(copy)
            assert found.numbers == expected.numbers
            assert found.tensors.keys() == expected.tensors.keys()
            assert [name for name, tensor in expected.tensors.items() if not tensor.equal(found.tensors[name])] == []
        source = after
    unbroken, _ = trained(0, 1, tiny_model, config_of("ppo", "one rank"), batches)
    end = snapshot_in(source)
    assert end.numbers["num_steps_done"] == 5
    for name, weight in unbroken.items():
        section, _, rest = name.partition(".")
        assert_close(end.tensors[f"{section}/{rest}"], weight, atol=1e-6, rtol=0)


def three_saves(rank: int, num_ranks: int, directory: Path) -> list[str]:
    """The problems of three: of one that goes well, of one whose second part cannot be written, and of one without a place."""
    shard = Shard(index=rank, count=num_ranks)
    tensor = torch.full((2,), float(rank))
    good = LearnerSnapshot(tensors={"policy/a": tensor}, numbers={})
    bad = LearnerSnapshot(tensors={"policy/a": tensor, "policy/b": tensor}, numbers={})  # safetensors refuses shared memory
    problems = []
    writer = checkpoint_writer(plan(directory), shard, rank=rank)
    nowhere = checkpoint_writer(plan(directory / "step-000001" / "learner.json"), shard, rank=rank)  # a file
    assert writer is not None
    assert nowhere is not None
    for step, (each, snapshot) in enumerate(((writer, good), (writer, bad if rank == 1 else good), (nowhere, good)), start=1):
        each.begin(step, snapshot, policy_version=0)
        report = each.finish()
        assert report is not None
        problems.append(report.problem)
        torch.distributed.barrier()  # the second writer's folder lies in the first checkpoint
    return problems


def test_a_part_that_cannot_be_written_is_told_and_no_rank_waits_for_it(ranks: ProcessRanks, tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints"
    first, second = ranks.run(three_saves, 2, directory)
    assert first[0] == second[0] == ""
    assert "1 of 2 ranks could not write their parts" in first[1]
    assert "share memory" in second[1]
    assert "FileExistsError" in first[2]
    assert second[2] == ""  # it had nothing to write
    assert [path.name for path in directory.iterdir()] == ["step-000001"]
    assert snapshot_in(directory).tensors["policy/a"].tolist() == [0.0, 0.0, 1.0, 1.0]


TEXTS = (ContractText(text="abc", token_ids=(97, 98, 99)),)
PROBE = (97, 98, 99)


def given_out(
    rank: int, num_ranks: int, model: str, config: PolicyLearnerConfig, batch: ScoredBatch, folder: Path
) -> tuple[WeightFile | AdapterFile | None, str | None, Weights]:
    """What is published and exported, and the weights after one more update: all ranks are still in step."""
    learner = learner_of(rank, num_ranks, model, config)
    worker = Worker(rank=rank, learner=learner, writer=None)
    learner.update(batch)
    published = commands.publish(worker, folder / "published", "bfloat16", PROBE)
    if config.lora is not None:
        commands.export(worker, folder / "adapter", "float32", TEXTS, "adapter")
    problem = commands.export(worker, folder / "policy", "float32", TEXTS)
    refused = False
    try:
        commands.export(worker, folder / "policy", "float32", TEXTS)  # is there already
    except DataError:
        refused = True
    assert refused == (rank == 0)
    learner.update(batch)
    return published, problem, weights_of(learner)


@pytest.mark.parametrize(("method", "way"), [("ppo", "hybrid"), ("ppo", "replicated"), ("adapter", "hybrid")])
def test_ranks_publish_and_export_what_one_rank_does(
    ranks: ProcessRanks,
    tiny_model: str,
    config_of: Callable[[str, str], PolicyLearnerConfig],
    batches: list[ScoredBatch],
    tmp_path: Path,
    method: str,
    way: str,
) -> None:
    ((expected_file, expected_problem, expected),) = ranks.run(
        given_out, 1, tiny_model, config_of(method, "one rank"), batches[1], tmp_path / "whole"
    )
    (found_file, problem, found), *others = ranks.run(
        given_out, 4, tiny_model, config_of(method, way), batches[1], tmp_path / way
    )
    assert [(file, problem) for file, problem, _ in others] == [(None, None)] * 3
    assert problem == expected_problem == ""
    for name, weight in expected.items():
        assert_close(found[name], weight, atol=1e-6, rtol=0)
    published, expected_published = (load_file(file.path) for file in (found_file, expected_file))
    assert published.keys() == expected_published.keys()
    for name, weight in expected_published.items():
        assert_close(published[name], weight)  # to the rounding of bfloat16
    folder, expected_folder = tmp_path / way / "policy", tmp_path / "whole" / "policy"
    assert {path.name for path in folder.iterdir()} == {path.name for path in expected_folder.iterdir()}
    assert (folder / "config.json").read_text() == (expected_folder / "config.json").read_text()
    contract, expected_contract = read_contract(folder), read_contract(expected_folder)
    assert contract is not None
    assert expected_contract is not None
    check_files(folder, contract)
    assert contract.prompts[0].logprobs == pytest.approx(expected_contract.prompts[0].logprobs, abs=1e-5)
    policy, expected_policy = (AutoModelForCausalLM.from_pretrained(path) for path in (folder, expected_folder))
    for name, weight in expected_policy.named_parameters():
        assert_close(policy.get_parameter(name), weight, atol=1e-6, rtol=0)
    if method == "adapter":
        for numbers, expected_numbers in zip(found_file.probe.logprobs, expected_file.probe.logprobs, strict=True):
            for token in numbers.keys() & expected_numbers.keys():  # the 64th may be another
                assert numbers[token] == pytest.approx(expected_numbers[token], abs=1e-5)
            assert len(numbers.keys() & expected_numbers.keys()) > 50
        adapter, expected_adapter = (load_file(tmp_path / ranks_of / "adapter" / ADAPTER_WEIGHTS) for ranks_of in (way, "whole"))
        assert adapter.keys() == expected_adapter.keys() == published.keys()
        for name, weight in expected_adapter.items():
            assert_close(adapter[name], weight, atol=1e-6, rtol=0)


def reward_model_trained(rank: int, num_ranks: int, job: RewardModelJob) -> float:
    """Its accuracy after five steps, of which the last two follow a checkpoint; the model is in `job.output_dir`."""
    learner = RewardModelLearner(job, rank=rank, world_size=num_ranks)
    batches = learner.batches()
    for _ in range(3):
        learner.update(next(batches))
    written(learner, job.checkpoints.directory, rank)
    resumed = RewardModelLearner(job, rank=rank, world_size=num_ranks)
    restore_newest(resumed, job.checkpoints, rank=rank, world_size=num_ranks)
    for batch in resumed.batches():
        resumed.update(batch)
    accuracy = resumed.accuracy()
    resumed.normalise()
    resumed.export()
    return accuracy


def reward_model_job(model: str, way: str, directory: Path, lora: dict[str, Any] | None) -> RewardModelJob:
    """Texts of 3 to 7 tokens whose rating is their first one; batches of seven, of which ranks have one or two."""
    token_ids = tuple((97 + text % 5, *range(98, 100 + text % 5)) for text in range(35))
    ratings = tuple(float(text % 5) for text in range(35))
    pairs = tuple((i, j) for i in range(10) for j in range(10) if ratings[i] > ratings[j])
    workers = {"num_threads": 1, "compute_dtype": "float32", "micro_batch_tokens": 8} | WAYS[way]
    optimizer = {"learning_rate": 1e-3, "eps": 1e-3}
    fields = {"batch_size": 7, "num_frozen_layers": 1, "workers": workers, "optimizer": optimizer, "lora": lora}
    return RewardModelJob(
        model_path=model,
        train=RatedTexts(token_ids=token_ids, ratings=ratings),
        held_out=ComparedTexts(token_ids=token_ids[:10], pairs=pairs),
        config=RewardModelLearnerConfig.model_validate(fields),
        seed=0,
        output_dir=directory / way,
        checkpoints=plan(directory / f"{way}, checkpoints"),
    )


@pytest.mark.parametrize("lora", [None, {"rank": 8}])
def test_a_reward_model_in_parts_learns_what_a_whole_one_learns(
    ranks: ProcessRanks, tiny_model: str, tmp_path: Path, lora: dict[str, Any] | None
) -> None:
    results = {}
    for way in ("one rank", "replicated", "sharded", "hybrid", "packed"):
        job = reward_model_job(tiny_model, way, tmp_path, lora)
        accuracies = ranks.run(reward_model_trained, job.config.workers.num_workers, job)
        results[way] = accuracies[0], load_file(job.output_dir / "model.safetensors")
    expected_accuracy, expected = results["one rank"]
    assert expected["score.weight"].abs().max() > 1e-3
    for accuracy, found in results.values():
        assert accuracy == expected_accuracy
        assert found.keys() == expected.keys()
        for name, weight in expected.items():
            assert_close(found[name], weight, atol=1e-6, rtol=0)
