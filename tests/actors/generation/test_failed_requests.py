"""What a request that fails costs, on an engine that fails as its test says, with vLLM's own errors."""

import asyncio
from collections.abc import Callable

import pytest
from vllm.exceptions import VLLMValidationError
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from actors.config import GeneratorConfig
from actors.generation.vllm_generator import PROBE, VLLMGenerator
from cluster.errors import ActorLostError
from cluster.messages import Message
from cluster.types import Prompt, SamplingParameters, Task
from tests.actors.generation.recording_engine import RecordingEngine

SAMPLING = SamplingParameters(temperature=1.0, top_p=1.0, max_completion_tokens=8, samples_per_prompt=3, seed=11)
PROMPT = Prompt(task=Task(task_id="t", messages=(Message(role="user", content="go"),)), text="go", token_ids=(5, 6))


@pytest.fixture
def engine_that(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[VLLMGenerator, RecordingEngine]]:
    """Builds a generator on an engine with this answer."""

    def build(answer: Callable[[list[int], int], str]) -> tuple[VLLMGenerator, RecordingEngine]:
        engine = RecordingEngine(answer=answer)
        engine.label = "4"
        engine.install(monkeypatch, {})
        return VLLMGenerator("folder", GeneratorConfig()), engine

    return build


Build = Callable[..., tuple[VLLMGenerator, RecordingEngine]]


def _fails(cause: Exception) -> str:
    """As `AsyncLLM.generate` does where something unexpected is raised."""
    raise EngineGenerateError() from cause


def _refuses() -> str:
    raise VLLMValidationError("Token id 999 is out of vocabulary")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda: _fails(OverflowError("integer too large")), "its request failed: OverflowError('integer too large')"),
        (_refuses, "its request failed: VLLMValidationError('Token id 999 is out of vocabulary')"),
        (lambda: "error", "its request failed: vLLM ended it with 'error'"),
        (lambda: "abort", "its request failed: vLLM ended it with 'abort'"),
    ],
)
def test_a_request_that_fails_costs_its_trajectory(engine_that: Build, answer: Callable[[], str], reason: str) -> None:
    generator, engine = engine_that(lambda token_ids, number: answer() if number == 1 else "stop")
    group = asyncio.run(generator.generate(PROMPT, SAMPLING))
    assert (group.texts.prompt, dict(group.numbers.failures)) == (PROMPT, {1: reason})
    assert [trajectory.sample_index for trajectory in group.texts.trajectories] == [0, 2]
    assert [sample.policy_versions for sample in group.numbers.samples] == [{4}, {4}]
    assert len(engine.asked) == 3  # an engine that completes anything is asked nothing more


def test_a_prompt_that_always_fails_costs_its_group_where_the_engine_answers_another(engine_that: Build) -> None:
    generator, engine = engine_that(lambda token_ids, number: _refuses() if token_ids == [5, 6] else "length")
    group = asyncio.run(generator.generate(PROMPT, SAMPLING))
    assert (group.texts.trajectories, group.tokens, sorted(group.numbers.failures)) == ((), (), [0, 1, 2])
    assert engine.asked == [[5, 6]] * 3 + [list(PROBE)]


def test_an_engine_that_fails_every_request_is_lost_and_says_why(engine_that: Build) -> None:
    generator, engine = engine_that(lambda token_ids, number: _fails(RuntimeError("no memory")))
    with pytest.raises(ActorLostError, match=r"its engine fails every request: .*RuntimeError\('no memory'\)"):
        asyncio.run(generator.generate(PROMPT, SAMPLING))
    assert len(engine.asked) == 4


def test_a_dead_engine_is_lost(engine_that: Build) -> None:
    def die(token_ids: list[int], number: int) -> str:
        raise EngineDeadError

    with pytest.raises(ActorLostError, match="its engine has died"):
        asyncio.run(engine_that(die)[0].generate(PROMPT, SAMPLING))


def test_a_request_that_takes_the_engine_with_it_is_no_failure_of_its_own(engine_that: Build) -> None:
    """Where vLLM's output loop ends with an error, running requests fail one by one, and the engine answers nothing more."""

    def fail(token_ids: list[int], number: int) -> str:
        engine.errored = True
        return _fails(RuntimeError("the output loop"))

    generator, engine = engine_that(fail)
    with pytest.raises(ActorLostError, match=r"its engine has died: RuntimeError\('the output loop'\)"):
        asyncio.run(generator.generate(PROMPT, SAMPLING))
