"""The front door: the OpenAI routes that a policy needs, and no others.

A request whose replica is lost before the first token goes to another; a stream that has begun ends with an error instead.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle
from ray.serve.llm.ingress import OpenAiIngress, make_fastapi_ingress
from ray.serve.llm.openai_api_models import ChatCompletionRequest, CompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.v1.engine.exceptions import EngineDeadError

from serving.api_errors import broken_stream, engine_error, model_not_found, no_room, unavailable
from serving.policy_server import ServedBy

RETRY_FOR_S = 30.0  # longer than it takes Serve to take a replica with a dead engine out of the rotation
FIRST_RETRY_S, LONGEST_RETRY_S = 0.1, 2.0  # each wait is twice the one before
VERSION_HEADER: Final = "X-Policy-Version"
STREAM_ERROR: Final = 'data: {"error"'  # how vLLM begins the event before a stream's early end
REPLICA_LOST: Final = (RayActorError, EngineDeadError)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Begun:
    """A response whose first item is there, so that the engine has taken the request."""

    served_by: ServedBy
    first: Any
    rest: AsyncIterator[Any]


class PolicyIngress(OpenAiIngress):
    """Ray's ingress, with retries, the policy version in a header, and OpenAI's error bodies."""

    def __init__(
        self, llm_deployments: dict[str, DeploymentHandle], model_cards: dict[str, Any], *, max_model_tokens: int
    ) -> None:
        super().__init__(llm_deployments, model_cards)
        self._engines = dict(llm_deployments)
        self._max_model_tokens = max_model_tokens

    async def chat(self, body: ChatCompletionRequest, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        return await self._answer(body, "chat", request)

    async def completions(self, body: CompletionRequest, request: Request) -> Response:
        """`POST /v1/completions`."""
        return await self._answer(body, "completions", request)

    async def _answer(self, body: Any, call_method: str, request: Request) -> Response:
        if body.model is not None and body.model not in self._engines:
            return model_not_found(body.model)
        deadline, wait_s = time.monotonic() + RETRY_FOR_S, FIRST_RETRY_S
        while True:
            try:
                begun = await self._begin(body, call_method, request)
            except REPLICA_LOST:
                if time.monotonic() > deadline:
                    return unavailable()
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, LONGEST_RETRY_S)
            else:
                if _has_no_room(begun.first, body):
                    return no_room(self._max_model_tokens)
                return _reply(begun)

    async def _begin(self, body: Any, call_method: str, request: Request) -> _Begun:
        """Raises what a lost replica raises, also where the engine died and its server told so in a first event."""
        items = self._get_response(body=body, call_method=call_method, raw_request=request)
        served_by = await anext(items)
        first = await anext(items)
        if isinstance(first, list) and first[0].startswith(STREAM_ERROR):
            first = ErrorResponse.model_validate_json(first[0].removeprefix("data: "))
            if first.error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
                raise EngineDeadError
        return _Begun(served_by=served_by, first=first, rest=items)


def _has_no_room(first: Any, body: ChatCompletionRequest | CompletionRequest) -> bool:
    """Whether the prompt leaves no token to a request that did not ask for none itself."""
    if not isinstance(first, ErrorResponse) or first.error.param != "max_tokens":
        return False
    asked = [body.max_tokens, *([body.max_completion_tokens] if isinstance(body, ChatCompletionRequest) else [])]
    return all(number is None or number > 0 for number in asked)


def _reply(begun: _Begun) -> Response:
    version = begun.served_by.policy_version
    headers = {} if version is None else {VERSION_HEADER: str(version)}
    if isinstance(begun.first, ErrorResponse):
        error = begun.first.error
        return engine_error(error.code, error.message, kind=error.type, param=error.param)
    if isinstance(begun.first, list):  # events that were ready together
        return StreamingResponse(_events(begun), media_type="text/event-stream", headers=headers)
    return JSONResponse(begun.first.model_dump(), headers=headers)


async def _events(begun: _Begun) -> AsyncIterator[str]:
    """The stream as vLLM writes it, but for its `[DONE]` after an error."""
    for event in begun.first:
        yield event
    try:
        async for batch in begun.rest:
            for event in batch:
                if event.startswith(STREAM_ERROR):
                    yield broken_stream()
                    return
                yield event
    except REPLICA_LOST:
        yield broken_stream()


def build_ingress_class() -> type:
    """The deployment class. Routes that are not listed here do not exist."""
    return make_fastapi_ingress(
        PolicyIngress,
        endpoint_map={
            "models": lambda app: app.get("/v1/models"),
            "model_data": lambda app: app.get("/v1/models/{model}"),
            "completions": lambda app: app.post("/v1/completions"),
            "chat": lambda app: app.post("/v1/chat/completions"),
        },
    )
