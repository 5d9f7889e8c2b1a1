"""What the front door makes of what its engines say, and of engines that are lost. No Ray, no vLLM engine."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import Request
from fastapi.responses import JSONResponse, StreamingResponse
from ray.exceptions import ActorDiedError

from serving.app import callers_logging_kept

with callers_logging_kept():
    from ray.serve.llm.openai_api_models import ChatCompletionRequest, CompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionResponse
    from vllm.entrypoints.serve.engine.protocol import ErrorInfo, ErrorResponse, UsageInfo
    from vllm.v1.engine.exceptions import EngineDeadError

    from serving import ingress
    from serving.ingress import VERSION_HEADER, PolicyIngress
    from serving.policy_server import ServedBy

LOST = 'data: {"error": {"message": "EngineCore encountered an issue", "type": "InternalServerError", "code": 500}}\n\n'
REFUSED = 'data: {"error": {"message": "no such token", "type": "BadRequestError", "code": 400}}\n\n'
SERVED_BY = ServedBy(policy_version=7)
ANSWER = CompletionResponse(model="run", choices=[], usage=UsageInfo())


class FakeEngine:
    """A deployment handle whose calls are scripted: each yields its items, or raises the error among them."""

    def __init__(self, *calls: list[Any]) -> None:
        self._calls = list(calls)
        self.num_calls = 0
        self.chat = self.completions = self

    def options(self, **options: object) -> "FakeEngine":
        return self

    async def remote(self, *arguments: object) -> AsyncIterator[Any]:
        items = self._calls[min(self.num_calls, len(self._calls) - 1)]
        self.num_calls += 1
        for item in items:
            if isinstance(item, BaseException):
                raise item
            yield item


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingress, "FIRST_RETRY_S", 0.001)
    monkeypatch.setattr(ingress, "RETRY_FOR_S", 0.05)


def ask(engine: FakeEngine, *, chat: bool = False, **body: Any) -> tuple[int, dict[str, str], str]:
    """(status, headers, body) of one request."""

    async def answer() -> tuple[int, dict[str, str], str]:
        door = PolicyIngress({"run": engine}, {"run": None}, max_model_tokens=128)
        request = Request({"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b""})
        fields = {"model": "run", "max_tokens": 4, **body}
        reply = await (
            door.chat(ChatCompletionRequest(messages=[{"role": "user", "content": "x"}], **fields), request)
            if chat
            else door.completions(CompletionRequest(prompt="x", **fields), request)
        )
        if isinstance(reply, StreamingResponse):
            return reply.status_code, dict(reply.headers), "".join([str(event) async for event in reply.body_iterator])
        assert isinstance(reply, JSONResponse)
        return reply.status_code, dict(reply.headers), bytes(reply.body).decode()

    return asyncio.run(answer())


def error_of(text: str) -> dict[str, Any]:
    return dict(json.loads(text)["error"])


@pytest.mark.parametrize("chat", [False, True])
def test_a_reply_names_its_version(chat: bool) -> None:
    status, headers, text = ask(FakeEngine([SERVED_BY, ANSWER]), chat=chat)
    assert (status, headers[VERSION_HEADER.lower()]) == (200, "7")
    assert json.loads(text)["model"] == "run"


def test_a_folder_that_is_no_version_has_no_header() -> None:
    _, headers, _ = ask(FakeEngine([ServedBy(policy_version=None), ANSWER]))
    assert VERSION_HEADER.lower() not in headers


@pytest.mark.parametrize("lost", [ActorDiedError(), EngineDeadError()])
def test_a_request_whose_replica_is_lost_goes_to_another(lost: Exception) -> None:
    engine = FakeEngine([lost], [SERVED_BY, lost], [SERVED_BY, ANSWER])
    assert ask(engine)[0] == 200
    assert engine.num_calls == 3


def test_a_stream_that_has_not_begun_goes_to_another_replica() -> None:
    engine = FakeEngine([SERVED_BY, [LOST, "data: [DONE]\n\n"]], [SERVED_BY, ["data: 1\n\n"], ["data: [DONE]\n\n"]])
    status, headers, text = ask(engine, stream=True)
    assert (status, headers[VERSION_HEADER.lower()], text) == (200, "7", "data: 1\n\ndata: [DONE]\n\n")


@pytest.mark.parametrize("end", [[[LOST, "data: [DONE]\n\n"]], [[LOST], ["data: [DONE]\n\n"]], [ActorDiedError()]])
def test_a_stream_that_loses_its_engine_does_not_claim_an_end(end: list[Any]) -> None:
    engine = FakeEngine([SERVED_BY, ["data: 1\n\n"], ["data: 2\n\n"], *end])
    _, _, text = ask(engine, stream=True)
    events = text.strip().split("\n\n")
    assert events[:2] == ["data: 1", "data: 2"]
    assert error_of(events[2].removeprefix("data: "))["code"] == "engine_lost"
    assert len(events) == 3
    assert engine.num_calls == 1  # the client has seen a part of it


def test_a_stream_that_the_engine_refuses_is_refused_once() -> None:
    engine = FakeEngine([SERVED_BY, [REFUSED, "data: [DONE]\n\n"]])
    status, _, text = ask(engine, stream=True)
    assert (status, error_of(text)["message"], engine.num_calls) == (400, "no such token", 1)


def test_no_engine_at_all_is_told_after_a_while() -> None:
    engine = FakeEngine([ActorDiedError()])
    status, headers, text = ask(engine)
    assert (status, error_of(text)["code"], headers["retry-after"]) == (503, "engine_unavailable", "1")
    assert engine.num_calls > 3


@pytest.mark.parametrize(
    ("param", "asked", "code"),
    [
        ("input_tokens", {}, "context_length_exceeded"),
        ("input_text", {}, "context_length_exceeded"),
        ("max_tokens", {}, "context_length_exceeded"),  # the engine found no room, the client had asked for four
        ("max_tokens", {"max_tokens": 0}, None),
        ("temperature", {}, None),
    ],
)
def test_a_prompt_beyond_the_context_has_openais_code(param: str, asked: dict[str, Any], code: str | None) -> None:
    refusal = ErrorResponse(error=ErrorInfo(message="no", type="BadRequestError", code=400, param=param))
    status, _, text = ask(FakeEngine([SERVED_BY, refusal]), **asked)
    assert (status, error_of(text)["code"]) == (400, code)


def test_an_unknown_model_is_not_found() -> None:
    engine = FakeEngine([])
    status, _, text = ask(engine, model="other")
    assert (status, error_of(text)["code"]) == (404, "model_not_found")
    assert engine.num_calls == 0
