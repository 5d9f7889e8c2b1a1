"""What a replica says of its engine's death. Ray's server is played; the engine's processes are none."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from serving.app import callers_logging_kept
from serving.engine.engine_watch import EngineWatch
from serving.versions.version_gate import VersionGate

with callers_logging_kept():
    from ray.serve.llm.deployment import LLMServer
    from ray.serve.llm.openai_api_models import ErrorResponse
    from vllm.entrypoints.serve.engine.protocol import ErrorInfo
    from vllm.v1.engine.exceptions import EngineDeadError

    from serving.policy_server import EngineLost, PolicyServer, ServedBy

FAILED = ['data: {"error": {"message": "x", "code": 500}}\n\n', "data: [DONE]\n\n"]
SERVED_BY = ServedBy(policy_version=3)
CRASHED = EngineLost(had_begun=True, has_crashed=True, was_alone=True)


class Replica(PolicyServer):
    """Never started, so there is no engine to shut down."""

    def __del__(self) -> None: ...


class Engine:
    """Yields what it is given and may die at its end."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.is_dead = False
        self.num_asked = 0

    async def ask(self, server: LLMServer, request: Any, raw_request_info: Any) -> AsyncIterator[Any]:
        self.num_asked += 1
        return self._answer()

    async def _answer(self) -> AsyncIterator[Any]:
        for item in self.items:
            if isinstance(item, BaseException):
                self.is_dead = True
                raise item
            yield item

    async def check_health(self, server: LLMServer) -> None:
        if self.is_dead:
            raise EngineDeadError


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    engine = Engine()
    monkeypatch.setattr(LLMServer, "completions", lambda *arguments: engine.ask(*arguments))
    monkeypatch.setattr(LLMServer, "check_health", lambda server: engine.check_health(server))
    return engine


def answers(*, times: int = 1) -> list[list[Any]]:
    """Of requests at the same time, to a server that has not started an engine."""

    async def ask(server: PolicyServer) -> list[Any]:
        return [item async for item in server.completions("request")]

    async def ask_all() -> list[list[Any]]:
        server = Replica.__new__(Replica)
        server._gate, server._watch = VersionGate(3), EngineWatch([])
        return await asyncio.gather(*[ask(server) for _ in range(times)])

    return asyncio.run(ask_all())


def test_what_the_engine_says_is_passed_on(engine: Engine) -> None:
    engine.items = ["a", ["data: 1\n\n"]]
    assert answers() == [[SERVED_BY, "a", ["data: 1\n\n"]]]


def test_a_stream_that_the_engine_does_not_begin_is_refused_as_any_request(engine: Engine) -> None:
    refusal = ErrorResponse(error=ErrorInfo(message="no room", type="BadRequestError", code=400))
    engine.items = [[refusal]]  # Ray's server batches it, as it batches events
    assert answers() == [[SERVED_BY, refusal]]


def test_a_dead_engine_is_not_asked(engine: Engine) -> None:
    engine.is_dead = True
    assert (answers(), engine.num_asked) == ([[EngineLost(had_begun=False)]], 0)


@pytest.mark.parametrize("before", [[], [["data: 1\n\n"]]])
def test_a_death_is_told_in_place_of_the_rest(engine: Engine, before: list[Any]) -> None:
    engine.items = [*before, EngineDeadError()]
    assert answers() == [[SERVED_BY, *before, CRASHED]]


def test_an_error_in_a_stream_is_a_death_where_the_engine_is_dead(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.items = [["data: 1\n\n"], FAILED]
    assert answers() == [[SERVED_BY, ["data: 1\n\n"], FAILED]]
    deaths = iter([False, True])

    async def check_health(server: LLMServer) -> None:
        if next(deaths):
            raise EngineDeadError

    monkeypatch.setattr(LLMServer, "check_health", check_health)
    assert answers() == [[SERVED_BY, ["data: 1\n\n"], CRASHED]]


def test_those_who_were_inside_together_were_not_alone(engine: Engine) -> None:
    async def wait_and_die() -> AsyncIterator[Any]:
        while engine.num_asked < 3:
            await asyncio.sleep(0)
        engine.is_dead = True
        yield "a"
        raise EngineDeadError

    engine._answer = wait_and_die  # type: ignore[method-assign]
    assert [items[-1].was_alone for items in answers(times=3)] == [False] * 3
