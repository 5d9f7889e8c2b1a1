"""The size of a request, counted before anything of it is kept for long: headers, then the body as it arrives."""

import asyncio
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api_errors import Refusal
from serving.config import BodyLimits

JSON_TYPE: Final = "application/json"


class BodyLimit:
    """ASGI middleware. Hands a whole body on, or raises `Refusal` as soon as it is known to be too large, too slow or no JSON."""

    def __init__(self, app: ASGIApp, *, limits: BodyLimits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._check_headers(scope)
        body = await self._whole_body(receive)
        is_given = False

        async def replay() -> Message:
            nonlocal is_given
            if is_given:
                return await receive()  # a disconnect
            is_given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    def _check_headers(self, scope: Scope) -> None:
        limits, headers = self._limits, Headers(scope=scope)
        if sum(len(name) + len(value) for name, value in scope["headers"]) > limits.max_header_bytes:
            raise Refusal(431, f"the headers are larger than {limits.max_header_bytes} bytes", code="headers_too_large")
        if headers.get("content-encoding", "identity") != "identity":
            raise Refusal(415, "a compressed body is not taken", code="unsupported_media_type", param="Content-Encoding")
        announced = headers.get("content-length", "")
        if announced.isdecimal() and int(announced[:20]) > limits.max_body_bytes:
            raise self._too_large()

    async def _whole_body(self, receive: Receive) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    body += message.get("body", b"")
                    if len(body) > self._limits.max_body_bytes:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError as error:
            message_text = f"the body did not arrive within {self._limits.body_timeout_s:g} s"
            raise Refusal(408, message_text, code="request_timeout") from error
        except ClientDisconnect as error:
            raise Refusal(400, "the body ended early", code="incomplete_body") from error

    def _too_large(self) -> Refusal:
        return Refusal(413, f"the body is larger than {self._limits.max_body_bytes} bytes", code="request_too_large")


async def json_body(request: Request) -> bytes:
    """The body of a request that says it is JSON: a page of another origin cannot say so without asking first."""
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != JSON_TYPE:
        raise Refusal(415, f"send Content-Type: {JSON_TYPE}", code="unsupported_media_type", param="Content-Type")
    return await request.body()
