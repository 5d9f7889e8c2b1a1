"""Weights over devices, from the learner's ranks to the engines: vLLM's own engines at both ends, devices that are not there.

No GPU was available: what `fake_transport` stands for has never run.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM
from vllm.distributed.weight_transfer import VLLMWeightSyncClient

from actors.device_wire import bit_checksum
from actors.generation.generator import HeldWeights
from actors.sources.tensor_shapes import folder_tensor_shapes
from cluster.errors import ConfigError, WeightMismatchError
from cluster.types import SentWeights
from learners.policy import commands
from learners.policy.learner import PolicyLearner
from learners.policy.start import StartingPoint
from learners.ranks.checkpoint import CheckpointWriter
from learners.ranks.loop import Worker, execute
from learners.ranks.mailbox import Call, CheckpointPlan
from learners.settings.policy import PolicyLearnerConfig
from learners.settings.run import load_run_config
from learners.weights.device import GeneratorClient, PolicySource, RankedGeneratorClient, WeightSender
from learners.weights.file import generator_weights, untied_tensors
from learners.weights.link import GeneratorLink
from tests.learners.weights.fake_transport import FakeHandle, Transport

ROOT = Path(__file__).resolve().parents[3]


Transports = Callable[[str], Transport]
backends = pytest.mark.parametrize("backend", ["nccl", "ipc"])


@pytest.fixture
def policy() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=4,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


@pytest.fixture
def transports(policy: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> Transports:
    def transport(backend: str) -> Transport:
        shapes = {name: tuple(tensor.shape) for name, tensor in untied_tensors(policy).items()}
        transport = Transport(backend, shapes)
        transport.install(monkeypatch)
        return transport

    return transport


def link(backend: Any, generators: Sequence[Any], *, epoch: int = 1) -> GeneratorLink:
    return GeneratorLink(
        epoch=epoch,
        backend=backend,
        generators=tuple(generators),
        dtype="bfloat16",
        deadline_s=30.0,
    )


def held(generator: FakeHandle) -> HeldWeights:
    weights: HeldWeights = ray.get(generator.held_weights.remote())
    return weights


def test_a_source_yields_what_a_file_would_hold(policy: LlamaForCausalLM) -> None:
    source = PolicySource(policy, torch.bfloat16)
    for _ in range(2):  # each publication is a new pass
        sent, written = dict(source), generator_weights(policy, torch.bfloat16)
        assert "lm_head.weight" not in sent
        assert sent.keys() == written.keys()
        for name, tensor in sent.items():
            assert_close(tensor, written[name], atol=0, rtol=0)
            assert not tensor.requires_grad


def test_a_source_declares_what_it_yields(policy: LlamaForCausalLM) -> None:
    source = PolicySource(policy, torch.bfloat16)
    declared = [(meta.name, meta.dtype, meta.shape) for meta in source.metadata()]
    assert declared == [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in source]


def test_a_source_follows_the_policy(policy: LlamaForCausalLM) -> None:
    source = PolicySource(policy, torch.float32)
    with torch.no_grad():
        policy.model.norm.weight.fill_(7.0)
    assert_close(dict(source)["model.norm.weight"], torch.full((4,), 7.0))


def test_clients_fit_vllms_protocol() -> None:
    assert isinstance(GeneratorClient(link("ipc", [])), VLLMWeightSyncClient)
    assert isinstance(RankedGeneratorClient(link("nccl", [])), VLLMWeightSyncClient)


@backends
def test_one_send_brings_every_tensor_with_its_version_to_every_generator(
    policy: LlamaForCausalLM, transports: Transports, backend: str
) -> None:
    transport = transports(backend)
    generators = [transport.start(), transport.start()]
    sender = WeightSender(policy, link(backend, generators), dtype=torch.bfloat16, rank=0)
    weights = sender.send(policy_version=5)
    expected = generator_weights(policy, torch.bfloat16)
    assert weights == SentWeights(policy_version=5, checksum=bit_checksum(expected.items()))
    for generator in generators:
        assert generator.engine.calls == ["init", "pause wait, clear the cache", "start", "update", "finish", "resume"]
        assert held(generator) == HeldWeights(policy_version=5, checksum=weights.checksum)
        assert list(generator.model.tensors) == list(expected)
        for name, tensor in generator.model.tensors.items():
            assert_close(tensor, expected[name], atol=0, rtol=0)


def test_nccl_counts_and_ranks_the_workers_of_every_replica(policy: LlamaForCausalLM, transports: Transports) -> None:
    transport = transports("nccl")
    generators = [transport.start(num_workers=num_workers) for num_workers in (2, 1, 2)]
    WeightSender(policy, link("nccl", generators), dtype=torch.bfloat16, rank=0)
    infos = [generator.engine.init_infos[0] for generator in generators]
    assert [info["rank_offset"] for info in infos] == [1, 3, 4]  # after the learner's rank 0, a pair, a single one, a pair
    [own] = transport.groups
    assert {info["world_size"] for info in infos} | {own.world_size} == {6}
    assert {(info["master_address"], info["master_port"]) for info in infos} == {(own.master_address, own.master_port)}


@backends
def test_tensors_are_compared_before_anything_connects(policy: LlamaForCausalLM, transports: Transports, backend: str) -> None:
    transport = transports(backend)
    transport.shapes = {"model.embed_tokens.weight": (9, 4)}
    generator = transport.start()
    with pytest.raises(WeightMismatchError, match="does not hold this model's tensors"):
        WeightSender(policy, link(backend, [generator]), dtype=torch.bfloat16, rank=0)
    assert generator.is_alive
    assert generator.engine.calls == transport.groups == []


@backends
def test_other_ranks_neither_connect_nor_transmit(policy: LlamaForCausalLM, transports: Transports, backend: str) -> None:
    transport = transports(backend)
    generator = transport.start()
    WeightSender(policy, link(backend, [generator]), dtype=torch.bfloat16, rank=1).send(policy_version=1)
    assert generator.engine.calls == transport.groups == []


@backends
def test_a_generator_that_receives_other_bits_than_were_sent_is_lost(
    policy: LlamaForCausalLM, transports: Transports, backend: str
) -> None:
    transport = transports(backend)
    generator = transport.start()
    sender = WeightSender(policy, link(backend, [generator]), dtype=torch.bfloat16, rank=0)
    transport.is_corrupting = True
    sender.send(policy_version=1)
    assert generator.engine.calls[-2:] == ["update", "shutdown"]
    assert not generator.is_alive


@backends
@pytest.mark.parametrize("moment", ["check_tensors", "start_weight_update", "update_weights", "finish_weight_update"])
def test_a_generator_lost_in_the_midst_is_no_error_of_the_learner(
    policy: LlamaForCausalLM, transports: Transports, backend: str, moment: str
) -> None:
    transport = transports(backend)
    lost, survivor = transport.start(), transport.start()
    lost.dies_in = moment
    sender = WeightSender(policy, link(backend, [lost, survivor]), dtype=torch.bfloat16, rank=0)
    weights = sender.send(policy_version=5)
    is_whole = (backend, moment) != ("nccl", "start_weight_update")  # there, one group is to carry tensors that all have begun
    assert (lost.is_alive, survivor.is_alive) == (False, is_whole)
    assert not is_whole or held(survivor) == HeldWeights(policy_version=5, checksum=weights.checksum)


def test_a_broadcast_that_lost_a_member_is_ended_and_those_that_hang_in_it_are_lost(
    policy: LlamaForCausalLM, transports: Transports
) -> None:
    transport = transports("nccl")
    lost, hanging = transport.start(), transport.start()
    lost.dies_in, hanging.hangs_in = "update_weights", "update_weights"
    sender = WeightSender(policy, link("nccl", [lost, hanging]), dtype=torch.bfloat16, rank=0)
    sender.send(policy_version=5)
    assert transport.groups[1:] == ["left"]
    assert not hanging.is_alive


@backends
def test_a_generator_has_the_links_deadline_for_each_call(policy: LlamaForCausalLM, transports: Transports, backend: str) -> None:
    transport = transports(backend)
    hanging = transport.start()
    sender = WeightSender(policy, link(backend, [hanging]), dtype=torch.bfloat16, rank=0)
    hanging.hangs_in = "start_weight_update"
    sender.send(policy_version=5)
    assert set(transport.timeouts_s) == {30.0}
    assert not hanging.is_alive


@pytest.mark.parametrize("rank", [0, 1])
def test_every_rank_executes_the_calls_of_a_link(
    tiny_model: str,
    tmp_path: Path,
    ppo_config: Callable[..., PolicyLearnerConfig],
    monkeypatch: pytest.MonkeyPatch,
    rank: int,
) -> None:
    start = StartingPoint(model_path=tiny_model, temperature=1.0, max_completion_tokens=8, samples_per_prompt=1, seed=0)
    learner = PolicyLearner(start, ppo_config(num_workers=2), rank=rank, world_size=2)
    transport = Transport("ipc", folder_tensor_shapes(Path(tiny_model)))
    transport.install(monkeypatch)
    generator = transport.start()
    writer = CheckpointWriter(CheckpointPlan(directory=tmp_path, keep=1, facts={}))
    worker = Worker(rank=rank, learner=learner, writer=writer)
    assert execute(Call(function=commands.link_epoch), worker) == 0
    execute(Call(function=commands.connect, arguments=(link("ipc", [generator], epoch=4),)), worker)
    assert execute(Call(function=commands.link_epoch), worker) == 4
    published = execute(Call(function=commands.send_weights), worker)
    assert isinstance(published, SentWeights)
    assert published.policy_version == 0
    assert ("finish" in generator.engine.calls) is (rank == 0)


@pytest.mark.parametrize(
    ("backend", "learner_gpus", "generator_gpus", "problem"),
    [
        ("nccl", 1, 2, None),
        ("ipc", 0.4, 0.5, None),
        ("nccl", 0, 1, "needs whole GPUs"),
        ("nccl", 1, 0.5, "needs whole GPUs"),
        ("ipc", 1, 0.5, "needs a GPU that both sides share"),
        ("ipc", 0, 0.5, "needs a GPU that both sides share"),
    ],
)
def test_a_backend_needs_its_devices_on_both_sides(
    backend: str, learner_gpus: float, generator_gpus: float, problem: str | None
) -> None:
    overrides = [
        f"generator.weight_transfer={backend}",
        f"generator.num_gpus={generator_gpus}",
        f"learner.workers.num_gpus={learner_gpus}",
    ]
    with pytest.raises(ConfigError, match=problem) if problem else nullcontext():
        load_run_config(ROOT / "configs" / "train" / "tiny.yaml", overrides)


def test_a_checksum_is_of_names_types_shapes_and_bits() -> None:
    # 1.0 in bfloat16 is 0x3f80 = 16256, and two of them are 32512.
    description = ([("a", "torch.bfloat16", (2,))], [32512])
    expected = hashlib.sha256(repr(description).encode()).hexdigest()
    assert bit_checksum([("a", torch.ones(2, dtype=torch.bfloat16))]) == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: ("b", tensor),
        lambda tensor: ("a", tensor.to(torch.float16)),
        lambda tensor: ("a", tensor.T),
        lambda tensor: ("a", tensor + torch.eye(3, 2) * 2**-20),
    ],
    ids=["name", "type", "shape", "bits"],
)
def test_a_checksum_differs_where_anything_does(
    change: Callable[[torch.Tensor], tuple[str, torch.Tensor]],
) -> None:
    tensor = torch.ones(3, 2)
    assert bit_checksum([change(tensor)]) != bit_checksum([("a", tensor)])
