"""A front door without Ray and vLLM's engine: the real application and routes, before engines that are scripted."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from serving.app import callers_logging_kept
from serving.config import RequestLimits

with callers_logging_kept():
    from vllm.entrypoints.openai.completion.protocol import CompletionResponse
    from vllm.entrypoints.serve.engine.protocol import UsageInfo

    from serving.guard.application import Guard, build_application
    from serving.guard.keys.key_gate import UsageCounter
    from serving.guard.refused_requests import RefusedRequests
    from serving.ingress import ROUTES, DoorRules, PolicyIngress
    from serving.policy_server import ServedBy

SERVED_BY = ServedBy(policy_version=7)
ANSWER = CompletionResponse(model="run", choices=[], usage=UsageInfo())
MODEL_CARD = {"id": "run", "object": "model", "owned_by": "us", "permission": [], "metadata": {}}
Engine = Callable[[Any], list[Any]]  # a request -> the items of its response, an exception among them is raised


class FakeEngine:
    """A deployment handle whose calls are scripted: each yields its items, or raises the error among them."""

    def __init__(self, *calls: list[Any], answer: Engine | None = None) -> None:
        self._calls = list(calls)
        self._answer = answer
        self.bodies: list[Any] = []
        self.chat = self.completions = self

    @property
    def num_calls(self) -> int:
        return len(self.bodies)

    def options(self, **options: object) -> "FakeEngine":
        return self

    async def remote(self, body: Any, raw_request_info: object) -> AsyncIterator[Any]:
        assert raw_request_info is None, "a client's headers, its key among them, go to the engine"
        self.bodies.append(body)
        items = self._calls[min(self.num_calls, len(self._calls)) - 1] if self._answer is None else self._answer(body)
        for item in items:
            if isinstance(item, BaseException):
                raise item
            yield item


def front_door(
    engine: FakeEngine,
    state_dir: Path,
    *,
    limits: RequestLimits | None = None,
    takes_tools: bool = False,
    usage: UsageCounter | None = None,
    timeout_s: float = 60.0,
    **guard: Any,
) -> FastAPI:
    """The application, with its routes on one `PolicyIngress` that serves the model `run`."""
    limits = limits or RequestLimits()
    app = build_application(
        Guard(limits=limits, timeout_s=timeout_s, log_folder=state_dir / "logs", **guard), usage, title="Rayward: run"
    )
    door = PolicyIngress(
        {"run": engine},
        {"run": MODEL_CARD},
        rules=DoorRules(limits=limits, max_model_tokens=128, takes_tools=takes_tools),
        refused=RefusedRequests(state_dir / "refused.jsonl"),
        usage=usage,
    )
    for name, route in ROUTES.items():
        route(app)(getattr(door, name))
    return app


def ask(app: FastAPI, method: str = "POST", path: str = "/v1/completions", **request: Any) -> httpx.Response:
    """One request; a stream's reply is read to its end."""

    async def ask_once() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=None) as client:
            return await client.request(method, path, **request)

    return asyncio.run(ask_once())


def error_of(reply: httpx.Response) -> tuple[int, str]:
    """(status, code) of an error in the form of the OpenAI API, whose reply has the request's id."""
    assert list(reply.json()) == ["error"], reply.text
    assert list(reply.json()["error"]) == ["message", "type", "param", "code"]
    assert reply.json()["error"]["message"]
    assert reply.headers["X-Request-ID"].startswith("req_")
    return reply.status_code, reply.json()["error"]["code"]
