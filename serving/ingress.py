"""The front door: the OpenAI routes that a policy needs, and no others.

An engine that is dead takes no request; another is asked. A request that was inside when its replica was lost, or its engine was
killed from outside, is tried once more on another replica, unless its stream had begun. A request that was inside an engine when
it crashed is not, and is written down: it may be the cause.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import FastAPI, Path, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import ValidationError
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.llm.ingress import OpenAiIngress, make_fastapi_ingress
from ray.serve.llm.openai_api_models import ChatCompletionRequest, CompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.exceptions import VLLMValidationError

from serving.api_errors import (
    Refusal,
    broken_stream,
    engine_lost,
    engine_refusal,
    model_not_found,
    no_room,
    public_text,
    stream_error,
    unavailable,
)
from serving.config import RequestLimits
from serving.guard.body_limit import json_body
from serving.guard.frame import state_of
from serving.guard.keys.key_gate import UsageCounter, check_admitted
from serving.guard.refused_requests import RefusedRequests, request_digest
from serving.guard.request_check import chat_fields, completion_fields, engine_fields, most_tokens
from serving.guard.request_fields import ChatFields, CompletionFields
from serving.guard.request_log import serve_logger
from serving.policy_server import STREAM_ERROR, EngineLost, ServedBy, is_stream_error

MAX_LOSSES: Final = 2  # of engines that had taken one request
ASK_AGAIN_AFTER_S: Final = 0.25
ASK_FOR_S: Final = 15.0  # well above the time that Serve needs to take a replica with a dead engine out of the rotation
FINGERPRINT: Final = re.compile(r'"system_fingerprint":"[^"\\]*"')  # within a string, quotes would have backslashes
VERSION_HEADER: Final = "X-Policy-Version"
NOBODY_THERE: Final = (BackPressureError, DeploymentUnavailableError)


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorRules:
    """What a front door lets pass. Produced by `deployment`, consumed by `PolicyIngress`."""

    limits: RequestLimits
    max_model_tokens: int
    takes_tools: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Begun:
    """A response whose first item is there, so that the engine has taken the request."""

    served_by: ServedBy
    first: Any
    rest: AsyncIterator[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A request that may go to an engine."""

    request_id: str
    digest: str
    body: ChatCompletionRequest | CompletionRequest
    method: str


class PolicyIngress(OpenAiIngress):
    """Ray's ingress behind checks of ours, with one retry, the policy version in each reply, and OpenAI's error bodies."""

    def __init__(
        self,
        llm_deployments: dict[str, DeploymentHandle],
        model_cards: dict[str, Any],
        *,
        rules: DoorRules,
        refused: RefusedRequests,
        usage: UsageCounter | None,
    ) -> None:
        super().__init__(llm_deployments, model_cards)
        self._model_ids = tuple(llm_deployments)
        self._rules = rules
        self._refused = refused
        self._usage = usage

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        rules = self._rules
        fields = chat_fields(await json_body(request), rules.limits, takes_tools=rules.takes_tools)
        return await self._answer(fields, ChatCompletionRequest, "chat", request)

    async def completions(self, request: Request) -> Response:
        """Complete one prompt, or several."""
        fields = completion_fields(await json_body(request), self._rules.limits)
        return await self._answer(fields, CompletionRequest, "completions", request)

    async def models(self) -> Any:
        """List the served policy."""
        return await super().models()

    async def model_data(self, model: Annotated[str, Path(max_length=256)]) -> Any:
        """Show the served policy."""
        if model not in self._model_ids:
            raise model_not_found(model)
        return await super().model_data(model)

    async def _answer(
        self,
        fields: ChatFields | CompletionFields,
        body_type: type[ChatCompletionRequest | CompletionRequest],
        method: str,
        request: Request,
    ) -> Response:
        state = state_of(request.scope)
        if fields.request_id is not None:
            state["record"].setdefault("client_request_id", fields.request_id[:64])
        if fields.model is not None and fields.model not in self._model_ids:
            raise model_not_found(fields.model)
        given = engine_fields(fields, self._rules.limits)
        digest = request_digest(method, given)
        self._refused.check(digest)
        if self._usage is not None:
            tokens = most_tokens(fields, self._rules.limits, self._rules.max_model_tokens)
            check_admitted(await self._usage.spend(state["key"], tokens))
        asked = _Asked(
            request_id=state["request_id"],
            digest=digest,
            body=_engine_body(body_type, {**given, "request_id": state["request_id"]}),
            method=method,
        )
        begun = await self._begin(asked)
        if _has_no_room(begun.first, asked.body, self._rules.max_model_tokens):
            raise no_room(self._rules.max_model_tokens)
        return self._reply(begun, asked)

    async def _begin(self, asked: _Asked) -> _Begun:
        """Raises `Refusal` where no replica answers, or where engines were lost with this request inside."""
        deadline_s, num_losses = time.monotonic() + ASK_FOR_S, 0
        while time.monotonic() < deadline_s:
            begun = await self._try(asked)
            if isinstance(begun, _Begun):
                return begun
            num_losses += begun.had_begun
            if begun.has_crashed or num_losses == MAX_LOSSES:
                self._write_down(asked, begun)
                raise engine_lost()
            await asyncio.sleep(ASK_AGAIN_AFTER_S)
        raise unavailable()

    async def _try(self, asked: _Asked) -> _Begun | EngineLost:
        """What came of asking one replica."""
        items = self._get_response(body=asked.body, call_method=asked.method)
        has_begun = False
        try:
            served_by = await anext(items)
            if isinstance(served_by, EngineLost):
                return served_by
            has_begun = True
            first = await anext(items)
        except RayActorError:
            return EngineLost(had_begun=has_begun)
        except NOBODY_THERE as error:
            raise unavailable() from error
        if isinstance(first, EngineLost):
            return first
        if is_stream_error(first):
            first = _error_in(first)
        return _Begun(served_by=served_by, first=first, rest=items)

    def _reply(self, begun: _Begun, asked: _Asked) -> Response:
        if isinstance(begun.first, ErrorResponse):
            raise _refusal(begun.first)
        headers = _version_headers(begun.served_by)
        if isinstance(begun.first, list):  # events that were ready together
            return StreamingResponse(self._events(begun, asked), media_type="text/event-stream", headers=headers)
        return JSONResponse({**begun.first.model_dump(), "system_fingerprint": fingerprint(begun.served_by)}, headers=headers)

    async def _events(self, begun: _Begun, asked: _Asked) -> AsyncIterator[str]:
        """The stream as vLLM writes it, but for its `[DONE]` after an error."""
        named = f'"system_fingerprint":"{fingerprint(begun.served_by)}"'
        try:
            async for item in _chain(begun.first, begun.rest):
                if isinstance(item, EngineLost):
                    if item.has_crashed:
                        self._write_down(asked, item)
                    yield broken_stream()
                    return
                if is_stream_error(item):
                    yield stream_error(_refusal(_error_in(item)))
                    return
                for event in item:
                    yield FINGERPRINT.sub(named, event)
        except RayActorError:
            yield broken_stream()

    def _write_down(self, asked: _Asked, lost: EngineLost) -> None:
        self._refused.add(asked.digest, was_alone=lost.was_alone, request_id=asked.request_id)


def fingerprint(served_by: ServedBy) -> str:
    """`system_fingerprint` of a reply: the policy version."""
    return "policy" if served_by.policy_version is None else f"policy-v{served_by.policy_version}"


def build_ingress_class(app: FastAPI) -> type:
    """The deployment class, on `app`. Routes that are not listed here do not exist."""
    return make_fastapi_ingress(PolicyIngress, endpoint_map=ROUTES, app=app)


def _body_of(fields: type[ChatFields | CompletionFields]) -> dict[str, Any]:
    """The request's body, for the documentation: the route reads it itself, byte by byte."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": fields.model_json_schema()}}}}


ROUTES: Final[dict[str, Callable[[FastAPI], Callable[..., Any]]]] = {
    "models": lambda app: app.get("/v1/models", response_model=None),
    "model_data": lambda app: app.get("/v1/models/{model}", response_model=None),
    "completions": lambda app: app.post("/v1/completions", response_model=None, openapi_extra=_body_of(CompletionFields)),
    "chat": lambda app: app.post("/v1/chat/completions", response_model=None, openapi_extra=_body_of(ChatFields)),
}


def _engine_body(
    body_type: type[ChatCompletionRequest | CompletionRequest], fields: dict[str, Any]
) -> ChatCompletionRequest | CompletionRequest:
    """vLLM checks some fields against each other."""
    try:
        return body_type.model_validate(fields)
    except ValidationError as error:
        detail = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(str(part) for part in detail["loc"][:1]) or None
        raise engine_refusal(400, detail["msg"], param=field) from error
    except VLLMValidationError as error:
        raise engine_refusal(400, str(error), param=error.parameter) from error


def _has_no_room(first: Any, body: ChatCompletionRequest | CompletionRequest, max_model_tokens: int) -> bool:
    """Whether the prompt leaves no token to a request that asked for no impossible number of them itself."""
    if not isinstance(first, ErrorResponse) or first.error.param != "max_tokens":
        return False
    asked = [body.max_tokens, *([body.max_completion_tokens] if isinstance(body, ChatCompletionRequest) else [])]
    return all(number is None or 0 < number <= max_model_tokens for number in asked)


def _refusal(error: ErrorResponse) -> Refusal:
    """The engine's words where the client can do something about it; of its own troubles, nothing."""
    status = error.error.code
    if HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return engine_refusal(status, error.error.message, param=error.error.param)
    serve_logger.error("the engine failed a request: %s", public_text(error.error.message))
    return Refusal(500, "the engine failed on this request", code="engine_failed", headers={"x-should-retry": "false"})


def _error_in(batch: list[str]) -> ErrorResponse:
    event = next(event for event in batch if event.startswith(STREAM_ERROR))
    return ErrorResponse.model_validate_json(event.removeprefix("data: "))


def _version_headers(served_by: ServedBy) -> dict[str, str]:
    version = served_by.policy_version
    return {} if version is None else {VERSION_HEADER: str(version)}


async def _chain(first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[Any]:
    yield first
    async for item in rest:
        yield item
