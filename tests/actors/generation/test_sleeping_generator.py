"""A generator on a device that others use in turn, on an engine that records what it is told."""

import asyncio
from typing import Any

import pytest

from actors.config import GeneratorConfig
from actors.generation import vllm_generator
from actors.generation.vllm_generator import VLLMGenerator
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


def test_an_engine_that_never_sleeps_is_built_without_the_allocator_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Arguments:
        disable_log_stats = True

        def __init__(self, **settings: Any) -> None:
            asked.append(settings["enable_sleep_mode"])
            raise InterruptedError

    monkeypatch.setattr("vllm.AsyncEngineArgs", Arguments)
    for level in (None, 1):
        with pytest.raises(InterruptedError):
            vllm_generator._build_engine("folder", GeneratorConfig(num_gpus=0.6, sleep_level=level), None)  # type: ignore[arg-type]
    assert asked == [False, True]
