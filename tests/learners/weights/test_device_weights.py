"""The learner's end of the device backends: vLLM's own trainer engines, with generators and devices that record."""

import hashlib
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM
from vllm.distributed.weight_transfer import VLLMWeightSyncClient, ipc_engine, nccl_engine

from cluster.errors import ConfigError
from cluster.types import PublishedWeights
from learners.policy import commands
from learners.policy.learner import PolicyLearner
from learners.policy.start import StartingPoint
from learners.ranks.checkpoint import CheckpointWriter
from learners.ranks.loop import Worker, execute
from learners.ranks.mailbox import Call, CheckpointPlan
from learners.settings.policy import PolicyLearnerConfig
from learners.settings.run import load_run_config
from learners.weights.device import GeneratorClient, PolicySource, RankedGeneratorClient, WeightSender, bit_checksum
from learners.weights.file import generator_weights
from learners.weights.link import GeneratorLink

ROOT = Path(__file__).resolve().parents[3]
Recorded = tuple[str, tuple[Any, ...]]
WEIGHTS = PublishedWeights(policy_version=3, path="", checksum="c")


class RecordingMethod:
    def __init__(self, name: str, calls: list[Recorded]) -> None:
        self._name, self._calls = name, calls

    def remote(self, *arguments: Any) -> None:
        self._calls.append((self._name, arguments))


class RecordingGenerator:
    """Looks like the handle of an actor of `DeviceFedGenerator`."""

    def __init__(self) -> None:
        self.calls: list[Recorded] = []
        for name in (
            "check_tensors",
            "init_weight_transfer_engine",
            "start_weight_update",
            "update_weights",
            "finish_weight_update",
        ):
            setattr(self, name, RecordingMethod(name, self.calls))


class RecordingGroup:
    """Stands for the process group of the nccl backend."""


@dataclass(frozen=True)
class Devices:
    """What vLLM's trainer engines did to devices that are not there."""

    groups: list[Any]  # init infos of process groups joined
    broadcast: list[tuple[str, torch.Tensor]]
    shared: list[torch.Tensor]


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Devices:
    """vLLM's own engines run, above the calls that touch a device. A reference is its own result."""
    devices = Devices([], [], [])

    def join(init_info: Any) -> RecordingGroup:
        devices.groups.append(init_info)
        return RecordingGroup()

    def broadcast(*, iterator: Iterable[tuple[str, torch.Tensor]], **_: Any) -> None:
        devices.broadcast.extend(iterator)

    def share(tensor: torch.Tensor) -> tuple[None, tuple[int, ...]]:
        devices.shared.append(tensor)
        return None, tuple(tensor.shape)

    monkeypatch.setattr(nccl_engine, "open_trainer_endpoint", join)
    monkeypatch.setattr(nccl_engine, "packed_nccl_broadcast_producer", broadcast)
    monkeypatch.setattr(ipc_engine, "reduce_tensor", share)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="GPU-0"))
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: None)
    monkeypatch.setattr(ray, "get", lambda references: references)
    return devices


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


def link(backend: Any, generators: list[RecordingGenerator], *, workers: int = 1) -> GeneratorLink:
    return GeneratorLink(backend=backend, generators=tuple(generators), workers_per_generator=workers, dtype="bfloat16")


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
    assert isinstance(GeneratorClient(()), VLLMWeightSyncClient)
    assert isinstance(RankedGeneratorClient((), workers_per_generator=1), VLLMWeightSyncClient)


@pytest.mark.usefixtures("devices")
def test_a_client_calls_every_generator_and_finishes_with_the_announced_version() -> None:
    generators = [RecordingGenerator(), RecordingGenerator()]
    client = GeneratorClient(tuple(generators))
    client.announce(WEIGHTS)
    client.start_weight_update()
    client.update_weights({"names": ["a"]})
    client.finish_weight_update()
    for generator in generators:
        assert generator.calls == [
            ("start_weight_update", ()),
            ("update_weights", ({"names": ["a"]},)),
            ("finish_weight_update", (WEIGHTS,)),
        ]


def test_nccl_counts_and_ranks_the_workers_of_every_replica(policy: LlamaForCausalLM, devices: Devices) -> None:
    generators = [RecordingGenerator() for _ in range(3)]
    WeightSender(policy, link("nccl", generators, workers=2), dtype=torch.bfloat16, rank=0)
    infos = [generator.calls[-1][1][0] for generator in generators]
    assert [info["rank_offset"] for info in infos] == [1, 3, 5]  # after the learner's rank 0, three pairs
    [own] = devices.groups
    assert {info["world_size"] for info in infos} | {own.world_size} == {7}
    assert {(info["master_address"], info["master_port"]) for info in infos} == {(own.master_address, own.master_port)}


@pytest.mark.usefixtures("devices")
@pytest.mark.parametrize("backend", ["nccl", "ipc"])
def test_tensors_are_compared_before_anything_connects(policy: LlamaForCausalLM, backend: str) -> None:
    generator = RecordingGenerator()
    WeightSender(policy, link(backend, [generator]), dtype=torch.bfloat16, rank=0)
    assert [name for name, _ in generator.calls] == ["check_tensors", "init_weight_transfer_engine"]
    shapes = generator.calls[0][1][0]
    assert shapes["model.embed_tokens.weight"] == (8, 4)
    assert "lm_head.weight" not in shapes


@pytest.mark.parametrize("backend", ["nccl", "ipc"])
def test_one_send_is_one_update_of_every_tensor_with_its_version(
    policy: LlamaForCausalLM, devices: Devices, backend: str
) -> None:
    generators = [RecordingGenerator(), RecordingGenerator()]
    sender = WeightSender(policy, link(backend, generators), dtype=torch.bfloat16, rank=0)
    for generator in generators:
        generator.calls.clear()
    weights = sender.send(policy_version=5)
    expected = generator_weights(policy, torch.bfloat16)
    assert weights == PublishedWeights(policy_version=5, path="", checksum=bit_checksum(expected.items()))
    for generator in generators:
        assert [name for name, _ in generator.calls] == ["start_weight_update", "update_weights", "finish_weight_update"]
        update, finish = generator.calls[1][1][0], generator.calls[2][1]
        assert update["names"] == list(expected)
        assert set(update["dtype_names"]) == {"bfloat16"}
        assert update["shapes"] == [list(tensor.shape) for tensor in expected.values()]
        assert finish == (weights,)
    for sent, tensor in zip(devices.shared or [tensor for _, tensor in devices.broadcast], expected.values(), strict=True):
        assert_close(sent, tensor, atol=0, rtol=0)


@pytest.mark.parametrize("backend", ["nccl", "ipc"])
def test_other_ranks_neither_connect_nor_transmit(policy: LlamaForCausalLM, devices: Devices, backend: str) -> None:
    generator = RecordingGenerator()
    sender = WeightSender(policy, link(backend, [generator]), dtype=torch.bfloat16, rank=1)
    sender.send(policy_version=1)
    assert {name for name, _ in generator.calls} == {"check_tensors"}
    assert devices.groups == devices.broadcast == []


@pytest.mark.usefixtures("devices")
@pytest.mark.parametrize("rank", [0, 1])
def test_every_rank_executes_the_calls_of_a_link(
    tiny_model: str, tmp_path: Path, ppo_config: Callable[..., PolicyLearnerConfig], rank: int
) -> None:
    start = StartingPoint(model_path=tiny_model, temperature=1.0, max_completion_tokens=8, samples_per_prompt=1, seed=0)
    learner = PolicyLearner(start, ppo_config(num_workers=2), rank=rank, world_size=2)
    generator = RecordingGenerator()
    writer = CheckpointWriter(CheckpointPlan(directory=tmp_path, keep=1, facts={}))
    worker = Worker(rank=rank, learner=learner, writer=writer)
    execute(Call(function=commands.connect, arguments=(link("ipc", [generator]),)), worker)
    published = execute(Call(function=commands.send_weights), worker)
    assert (published.policy_version, published.path) == (0, "")
    assert ("finish_weight_update" in dict(generator.calls)) is (rank == 0)


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
