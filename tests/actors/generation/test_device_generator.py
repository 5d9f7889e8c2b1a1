"""The generators' end of the device backends, on an engine that records what it is told. No GPU was available."""

import asyncio
from typing import Any

import pytest
import torch
from torch.storage import TypedStorage
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from actors.config import GeneratorConfig
from actors.device_wire import plain_handle, rebuild_arguments
from actors.generation import vllm_generator
from actors.generation.device_generator import DeviceFedGenerator
from actors.generation.device_receiving import IPCReceiver, NCCLReceiver
from actors.generation.generator import HeldWeights
from actors.generation.weight_loading import register
from cluster.errors import ActorLostError, RaywardError, StaleLinkError, WeightMismatchError
from cluster.types import SentWeights
from tests.actors.generation.recording_engine import NoReceiver, RecordingEngine

CONFIG = GeneratorConfig(num_gpus=0.5, weight_transfer="ipc")
SHAPES = {"a": (2, 3), "b": (4,)}
WEIGHTS = SentWeights(policy_version=2, checksum="c2")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> RecordingEngine:
    engine = RecordingEngine()
    engine.install(monkeypatch, {**SHAPES, "lm_head.weight": (9, 9)})
    return engine


@pytest.fixture
def generator(engine: RecordingEngine) -> DeviceFedGenerator:
    return DeviceFedGenerator("folder", CONFIG)


async def _update(generator: DeviceFedGenerator, weights: SentWeights) -> None:
    await generator.init_weight_transfer_engine(1, {"packed": False})
    await generator.start_weight_update(1)
    await generator.update_weights(1, {"names": ["a"]})
    await generator.update_weights(1, {"names": ["b"]})
    await generator.finish_weight_update(1, weights)


def test_an_update_pauses_clears_the_cache_and_ends_with_its_version(
    generator: DeviceFedGenerator, engine: RecordingEngine
) -> None:
    asyncio.run(_update(generator, WEIGHTS))
    assert engine.calls == ["init", "pause wait, clear the cache", "start", "update", "update", "finish", "resume"]
    assert engine.init_infos == [{"packed": False}]
    assert engine.update_infos == [{"names": ["a"]}, {"names": ["b"]}]
    assert asyncio.run(generator.held_weights()) == HeldWeights(policy_version=2, checksum="c2")


def test_loading_confirms_what_arrived(generator: DeviceFedGenerator) -> None:
    asyncio.run(_update(generator, WEIGHTS))
    assert asyncio.run(generator.load_weights(WEIGHTS)) == 2


@pytest.mark.parametrize(
    "published",
    [SentWeights(policy_version=3, checksum="c2"), SentWeights(policy_version=2, checksum="c3")],
    ids=["version", "checksum"],
)
def test_loading_refuses_what_did_not_arrive(generator: DeviceFedGenerator, published: SentWeights) -> None:
    asyncio.run(_update(generator, WEIGHTS))
    with pytest.raises(ActorLostError, match="came over the device"):
        asyncio.run(generator.load_weights(published))


def test_a_failing_update_stops_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    class FailingReceiver(NoReceiver):
        def update_weights(self, update_info: dict[str, Any]) -> None:
            raise ValueError("IPC handle not found for GPU UUID")

    engine = RecordingEngine(FailingReceiver())
    engine.install(monkeypatch, SHAPES)
    generator = DeviceFedGenerator("folder", CONFIG)
    with pytest.raises(ValueError, match="IPC handle"):
        asyncio.run(_update(generator, WEIGHTS))
    assert engine.calls[-1] == "shutdown"
    with pytest.raises(RaywardError, match="replace the actor"):
        asyncio.run(generator.ready())


def test_the_policys_tensors_must_be_the_models(generator: DeviceFedGenerator, engine: RecordingEngine) -> None:
    asyncio.run(generator.check_tensors(SHAPES))
    with pytest.raises(WeightMismatchError, match=r"the learner's policy does not hold this model's tensors: 2 .*\['a', 'c'\]"):
        asyncio.run(generator.check_tensors({"a": (3, 2), "b": (4,), "c": (1,)}))
    assert engine.calls == []


def test_a_new_link_leaves_the_one_before(generator: DeviceFedGenerator, engine: RecordingEngine) -> None:
    asyncio.run(_update(generator, WEIGHTS))
    asyncio.run(generator.init_weight_transfer_engine(2, {"packed": True}))
    assert engine.calls[-2:] == ["leave", "init"]
    assert engine.init_infos[-1] == {"packed": True}
    assert asyncio.run(generator.held_weights()) == HeldWeights(policy_version=2, checksum="c2")


def test_calls_of_an_older_link_are_refused_before_the_engine_is_touched(
    generator: DeviceFedGenerator, engine: RecordingEngine
) -> None:
    asyncio.run(generator.init_weight_transfer_engine(2, {}))
    calls = list(engine.calls)
    for call in (
        generator.init_weight_transfer_engine(1, {}),
        generator.start_weight_update(1),
        generator.update_weights(1, {}),
        generator.finish_weight_update(1, WEIGHTS),
    ):
        with pytest.raises(StaleLinkError, match="link 1 to the learner"):
            asyncio.run(call)
    assert engine.calls == calls


def test_a_new_link_in_the_midst_of_an_update_stops_the_engine(generator: DeviceFedGenerator, engine: RecordingEngine) -> None:
    asyncio.run(generator.init_weight_transfer_engine(1, {}))
    asyncio.run(generator.start_weight_update(1))
    with pytest.raises(ActorLostError, match="in the midst of an update"):
        asyncio.run(generator.init_weight_transfer_engine(2, {}))
    assert engine.calls[-1] == "shutdown"


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("backend", ["ipc", "nccl"])
def test_vllm_pickles_nothing_between_its_processes(backend: str) -> None:
    DeviceFedGenerator("folder", CONFIG.model_copy(update={"weight_transfer": backend}))
    assert "VLLM_ALLOW_INSECURE_SERIALIZATION" not in vllm_generator.os.environ


def test_the_plugin_names_the_receivers_to_vllm() -> None:
    register()
    for backend, receiver in (("nccl", NCCLReceiver), ("ipc", IPCReceiver)):
        assert WeightTransferEngineFactory._registry[vllm_generator.ENGINE_BACKENDS[backend]]() is receiver


def test_handles_of_device_memory_pass_vllms_encoder_only_in_their_plain_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_ALLOW_INSECURE_SERIALIZATION", raising=False)
    tensor = torch.ones(2, 3, dtype=torch.bfloat16)
    storage = (0, b"handle", 12, 0, False, b"counter", 0, b"event", True)
    handle = (torch.Tensor, tensor.size(), tensor.stride(), 0, TypedStorage, tensor.dtype, *storage)
    with pytest.raises(TypeError, match="not serializable"):
        MsgpackEncoder().encode(handle)
    passed_on = MsgpackDecoder().decode(MsgpackEncoder().encode(plain_handle(handle)))
    assert rebuild_arguments(passed_on) == handle


def test_a_handle_that_torch_makes_differently_is_refused() -> None:
    with pytest.raises(TypeError, match="check torch's version"):
        plain_handle((torch.nn.Parameter,) * 15)
