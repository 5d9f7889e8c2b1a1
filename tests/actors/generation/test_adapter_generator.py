"""A generator that gets adapters, on an engine that records what it is told: which adapter a request has, and what is refused."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.config import GeneratorConfig
from actors.generation.adapter_generator import AdapterGenerator, AdapterSlots, adapter_problem
from actors.generation.generator import INITIAL_CHECKSUM, Generated, HeldWeights
from cluster.errors import ActorLostError, WeightMismatchError
from cluster.messages import Message
from cluster.storage.weight_file import seal_weights
from cluster.types import AdapterFile, AdapterProbe, Prompt, SamplingParameters, Task
from tests.actors.generation.recording_engine import RecordingEngine

SAMPLING = SamplingParameters(temperature=1.0, top_p=1.0, max_completion_tokens=4, samples_per_prompt=1, seed=0)
PROMPT = Prompt(task=Task(task_id="t", messages=(Message(role="user", content="x"),)), text="x", token_ids=(1,))
PROBE = AdapterProbe(
    contexts=((5,), (5, 6)),
    logprobs=({1: -1.5, 2: -2.0, 3: -9.0}, {4: -0.5}),
    start_logprobs=({1: -1.0, 2: -2.0, 3: -9.0}, {4: -0.5}),
    max_mismatch=0.1,
)


def after_first(number: float) -> dict[str, Any]:
    """Fields of a probe whose first context makes token 1 so likely."""
    return {"logprobs": ({**PROBE.logprobs[0], 1: number}, PROBE.logprobs[1])}


class AdapterEngine(RecordingEngine):
    """What it finds likely after a context is what the probe says, and requests end when the test lets them."""

    def __init__(self) -> None:
        super().__init__()
        self.adapters: list[str] = []  # of each request that samples
        self.requests: list[Any] = []  # every `LoRARequest` that was added
        self.ignores_adapters = False
        self.free = asyncio.Event()
        self.free.set()

    async def add_lora(self, request: Any) -> bool:
        if not Path(request.lora_path, "adapter_model.safetensors").exists():
            raise ValueError("no adapter there")
        self.requests.append(request)
        self.calls.append(f"add {request.lora_int_id}")
        return True

    async def remove_lora(self, lora_id: int) -> bool:
        self.calls.append(f"remove {lora_id}")
        return True

    async def generate(self, prompt: Any, parameters: Any, *, request_id: str, lora_request: Any = None) -> AsyncIterator[Any]:
        if not parameters.logprobs:
            self.adapters.append("none" if lora_request is None else lora_request.lora_name)
            await self.free.wait()
            async for output in super().generate(prompt, parameters, request_id=request_id):
                yield output
            return
        is_start = lora_request is None or self.ignores_adapters
        context = PROBE.contexts.index(tuple(prompt["prompt_token_ids"]))
        numbers = (PROBE.start_logprobs if is_start else PROBE.logprobs)[context]
        likely = {token: SimpleNamespace(logprob=number) for token, number in numbers.items()}
        yield SimpleNamespace(outputs=[SimpleNamespace(finish_reason="length", logprobs=[likely])])


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> AdapterEngine:
    engine = AdapterEngine()
    engine.install(monkeypatch, {})
    return engine


FILES = ("adapter_model.safetensors", "adapter_config.json")


def generator_of(num_adapters: int = 2) -> AdapterGenerator:
    slots = AdapterSlots(max_rank=8, num_adapters=num_adapters)
    return AdapterGenerator("folder", GeneratorConfig(), "finish", slots)


def adapter(folder: Path, version: int, probe: AdapterProbe = PROBE) -> AdapterFile:
    partial, file = folder / "partial", folder / f"v{version}.safetensors"
    partial.write_text(f"tensors of version {version}")
    weights = seal_weights(partial, file, policy_version=version, node_id="")
    return AdapterFile(weights=weights, config=f"configuration of version {version}", probe=probe)


def versions(generated: Generated) -> set[int]:
    return {version for sample in generated.numbers.samples for version in sample.policy_versions}


def test_the_engine_keeps_room_for_adapters_of_the_rank(engine: AdapterEngine) -> None:
    generator_of(num_adapters=3)
    assert engine.arguments == {"enable_lora": True, "max_lora_rank": 8, "max_loras": 3, "max_cpu_loras": 3}


def test_before_the_first_publication_the_model_itself_samples(engine: AdapterEngine) -> None:
    async def run() -> tuple[int, HeldWeights, Generated]:
        generator = generator_of()
        return await generator.ready(), await generator.held_weights(), await generator.generate(PROMPT, SAMPLING)

    version, held, generated = asyncio.run(run())
    assert (version, held) == (0, HeldWeights(policy_version=0, checksum=INITIAL_CHECKSUM))
    assert (versions(generated), engine.adapters) == ({0}, ["none"])


def test_each_publication_is_a_new_adapter_and_the_one_before_the_last_is_dropped(engine: AdapterEngine, tmp_path: Path) -> None:
    published = [adapter(tmp_path, version) for version in (0, 4, 8)]

    async def run() -> None:
        generator = generator_of()
        for each in published:
            assert await generator.load_weights(each) == each.policy_version
            held = await generator.held_weights()
            assert held == HeldWeights(policy_version=each.policy_version, checksum=each.checksum)
            assert versions(await generator.generate(PROMPT, SAMPLING)) == {each.policy_version}

    asyncio.run(run())
    assert engine.calls == ["add 1", "add 2", "remove 1", "add 3"]
    folders = [Path(request.lora_path) for request in engine.requests]
    assert [folder.exists() for folder in folders] == [False, True, True]  # each for as long as its adapter
    assert [(folders[-1] / name).read_text() for name in FILES] == ["tensors of version 8", "configuration of version 8"]
    assert len(set(folders)) == 3
    assert engine.adapters == [request.lora_name for request in engine.requests]
    assert len(set(engine.adapters)) == 3


def test_a_version_that_is_published_again_is_another_adapter(engine: AdapterEngine, tmp_path: Path) -> None:
    published = adapter(tmp_path, 4)

    async def run() -> None:
        generator = generator_of()
        await generator.load_weights(published)
        await generator.load_weights(published)

    asyncio.run(run())
    first, second = engine.requests
    assert first.lora_int_id != second.lora_int_id
    assert first.lora_name != second.lora_name


def test_a_request_keeps_the_adapter_that_it_began_with(engine: AdapterEngine, tmp_path: Path) -> None:
    async def run() -> tuple[Generated, Generated]:
        generator = generator_of(num_adapters=3)
        await generator.load_weights(adapter(tmp_path, 1))
        engine.free.clear()
        early = asyncio.ensure_future(generator.generate(PROMPT, SAMPLING))
        while not engine.adapters:
            await asyncio.sleep(0)
        await generator.load_weights(adapter(tmp_path, 2))
        await generator.load_weights(adapter(tmp_path, 3))
        engine.free.set()
        samples = await early, await generator.generate(PROMPT, SAMPLING)
        await generator.load_weights(adapter(tmp_path, 4))
        return samples

    early, late = asyncio.run(run())
    assert (versions(early), versions(late)) == ({1}, {3})
    assert engine.calls == ["add 1", "add 2", "add 3", "remove 1", "remove 2", "add 4"]


def test_where_the_engine_is_full_a_publication_waits_for_a_request_to_end(engine: AdapterEngine, tmp_path: Path) -> None:
    async def run() -> None:
        generator = generator_of(num_adapters=2)
        await generator.load_weights(adapter(tmp_path, 1))
        engine.free.clear()
        early = asyncio.ensure_future(generator.generate(PROMPT, SAMPLING))
        while not engine.adapters:
            await asyncio.sleep(0)
        await generator.load_weights(adapter(tmp_path, 2))
        room = asyncio.ensure_future(generator._make_room())
        for _ in range(10):  # turns of the loop; there is nothing else to wait for
            await asyncio.sleep(0)
        assert (room.done(), engine.calls) == (False, ["add 1", "add 2"])
        engine.free.set()
        await early
        await room

    asyncio.run(run())
    assert engine.calls == ["add 1", "add 2", "remove 1"]


def test_a_file_that_was_changed_is_refused_before_the_engine_is_touched(engine: AdapterEngine, tmp_path: Path) -> None:
    published = adapter(tmp_path, 1)
    Path(published.weights.path).write_text("something else")
    with pytest.raises(WeightMismatchError, match=r"v1\.safetensors has sha256"):
        asyncio.run(generator_of().load_weights(published))
    assert engine.calls == []


def test_an_adapter_with_which_the_engine_does_not_agree_is_taken_out_again(engine: AdapterEngine, tmp_path: Path) -> None:
    other = replace(PROBE, **after_first(-0.9))

    async def run() -> Generated:
        generator = generator_of()
        await generator.load_weights(adapter(tmp_path, 1))
        with pytest.raises(WeightMismatchError, match=r"adapter of version 2: engine and learner disagree .* by 0\.15 nats"):
            await generator.load_weights(adapter(tmp_path, 2, other))
        assert (await generator.held_weights()).policy_version == 1
        return await generator.generate(PROMPT, SAMPLING)

    assert versions(asyncio.run(run())) == {1}
    assert engine.calls == ["add 1", "add 2", "remove 2"]


def test_an_engine_that_samples_without_the_adapter_is_found_out(engine: AdapterEngine, tmp_path: Path) -> None:
    engine.ignores_adapters = True
    near = replace(PROBE, **after_first(-1.01))
    with pytest.raises(
        WeightMismatchError,
        match="adapter of version 1: it moves the learner's log-probabilities by 0.0025 nats on average, and the engine's by 0:",
    ):
        asyncio.run(generator_of().load_weights(adapter(tmp_path, 1, near)))


def test_an_adapter_that_does_not_load_costs_the_generator(
    engine: AdapterEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = adapter(tmp_path, 1)
    generator = generator_of()

    async def lose(request: Any) -> bool:
        raise RuntimeError("engine says no")

    monkeypatch.setattr(engine, "add_lora", lose)
    with pytest.raises(ActorLostError, match="the adapter of version 1 was not loaded: .*engine says no"):
        asyncio.run(generator.load_weights(published))
    assert engine.calls == ["shutdown"]


@pytest.mark.parametrize(
    ("likely", "problem"),
    [
        (({1: -1.5, 2: -2.0}, {4: -0.5}), ""),
        (({1: -1.6, 2: -2.0, 99: -8.0}, {4: -0.6}), ""),  # 0.2 over three tokens; the learner's list has no token 99
        (
            ({1: -1.6, 2: -2.0}, {4: -0.8}),
            "by 0.133 nats a token on average, more than learner.mismatch.",
        ),
        (({1: float("nan")}, {4: -0.5}), "disagree about log-probabilities by nan"),
        (({98: -0.1}, {99: -0.1}), "are none that the learner does"),
    ],
)
def test_agreement_is_the_mean_difference(likely: tuple[dict[int, float], ...], problem: str) -> None:
    found = adapter_problem(PROBE, likely)
    assert (problem in found) if problem else found == ""


def test_an_adapter_that_is_still_zero_need_not_change_anything() -> None:
    zero = replace(PROBE, logprobs=PROBE.start_logprobs)
    assert adapter_problem(zero, PROBE.start_logprobs) == ""
