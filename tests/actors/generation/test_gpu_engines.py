"""Engines on GPUs, as far as this can be told without one: what they are told, and how they are built."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.numpy import save_file

from actors.config import GeneratorConfig
from actors.generation import vllm_generator
from actors.generation.vllm_generator import VLLMGenerator
from cluster.storage.weight_file import seal_weights
from tests.actors.generation.recording_engine import RecordingEngine

ASLEEP = "sleep 2, wait"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> RecordingEngine:
    engine = RecordingEngine()
    engine.install(monkeypatch, {})
    return engine


def told(engine: RecordingEngine, *calls: str) -> list[str]:
    """What the engine hears of these calls of a new generator."""
    generator = VLLMGenerator("folder", GeneratorConfig(num_gpus=0.6, sleep_level=2))

    async def run() -> None:
        for call in calls:
            await (generator.sleep() if call == "sleep" else generator.wake(call))  # type: ignore[arg-type]

    asyncio.run(run())
    return engine.calls


@pytest.mark.parametrize(
    ("calls", "heard"),
    [
        (["sleep", "weights", "kv_cache"], [ASLEEP, "wake weights", "wake kv_cache"]),
        (["sleep", "sleep"], [ASLEEP]),
        (["weights", "kv_cache"], []),  # it is awake, as a replacement is
        (["sleep", "weights", "weights"], [ASLEEP, "wake weights"]),
        (["sleep", "weights", "sleep"], [ASLEEP, "wake weights", "wake kv_cache", ASLEEP]),  # vLLM cannot sleep twice
    ],
)
def test_an_engine_is_told_what_it_does_not_do_already(engine: RecordingEngine, calls: list[str], heard: list[str]) -> None:
    assert told(engine, *calls) == heard


def test_an_engine_whose_cache_sleeps_takes_weights_and_no_requests(engine: RecordingEngine, tmp_path: Path) -> None:
    partial = tmp_path / "partial"
    save_file({}, partial)
    weights = seal_weights(partial, tmp_path / "v3.safetensors", policy_version=3, node_id="")
    generator = VLLMGenerator("folder", GeneratorConfig(num_gpus=0.6, sleep_level=2))

    async def run() -> int:
        await generator.sleep()
        await generator.wake("weights")
        version = await generator.load_weights(weights)
        await generator.wake("kv_cache")
        return version

    assert asyncio.run(run()) == 3
    assert engine.calls == [ASLEEP, "wake weights", "start", "update", "finish", "wake kv_cache"]


class Arguments:
    """In place of `AsyncEngineArgs`: remembers what it is given, and finds itself in an actor's placement group."""

    made: list["Arguments"] = []  # noqa: RUF012 - of one test

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.disable_log_stats = True
        self.made.append(self)

    def create_engine_config(self, usage: Any) -> Any:
        self.config = SimpleNamespace(parallel_config=SimpleNamespace(placement_group="the actor's"))
        return self.config


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"num_gpus": 1}, (False, None)),
        ({"num_gpus": 0.6, "sleep_level": 1}, (True, None)),
        ({"num_gpus": 2, "tensor_parallel_size": 2}, (False, None)),
        (
            {"num_gpus": 2, "tensor_parallel_size": 2, "devices": "any_node", "weight_transfer": "nccl"},
            (False, "the actor's"),
        ),
    ],
)
def test_an_engine_is_built_for_where_its_devices_are(
    monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], expected: tuple[bool, str | None]
) -> None:
    from vllm.v1.engine.async_llm import AsyncLLM

    monkeypatch.setattr("vllm.AsyncEngineArgs", Arguments)
    monkeypatch.setattr(AsyncLLM, "from_vllm_config", lambda settings, **_: settings)
    monkeypatch.setattr(Arguments, "made", [])
    steps: Any = SimpleNamespace(logger=None)
    vllm_generator._build_engine("folder", GeneratorConfig.model_validate(config), steps)
    [made] = Arguments.made
    assert (made.settings["enable_sleep_mode"], made.config.parallel_config.placement_group) == expected
    executor = made.settings["distributed_executor_backend"]
    is_spread, has_workers = config.get("devices") == "any_node", config["num_gpus"] == 2
    assert (executor == "ray", executor == "mp") == (is_spread, has_workers and not is_spread)
