"""The outermost layer of a route: ids, a deadline, and an end for whatever goes wrong inside.

A request's id is made here; a client's own is a label for the log. Every reply carries the id. An exception becomes a 500 that
says no more than the id, a request past its deadline a 408, and a stream past it an event with that error.
"""

import asyncio
import re
import time
import uuid
from collections.abc import Callable
from typing import Any, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api_errors import Refusal, internal_error, stream_error
from serving.guard.request_log import RequestLog

REQUEST_ID_HEADER: Final = "X-Request-ID"
OUR_ID: Final = re.compile(r"req_[0-9a-f]{32}")
LABEL_HEADERS: Final = ("x-client-request-id", REQUEST_ID_HEADER)  # what a client calls its request
NO_SNIFFING: Final = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


def new_request_id() -> str:
    """Unique, and nothing of the client's."""
    return f"req_{uuid.uuid4().hex}"


class Frame:
    """ASGI middleware. Puts `request_id` and `log` into the request's state, for the layers inside."""

    def __init__(self, app: ASGIApp, *, timeout_s: float, log: RequestLog, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._timeout_s = timeout_s
        self._log = log
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        started_s = self._clock()
        request_id = new_request_id()
        record = self._log.begin(
            request_id,
            method=scope["method"],
            path=scope["path"],
            label=_label(Headers(scope=scope)),
        )
        state = {**scope.get("state", {}), "request_id": request_id, "record": record}
        reply = _Reply(send, request_id)
        try:
            await self._answer({**scope, "state": state}, receive, reply)
        finally:
            record["status"] = reply.status
            record["duration_ms"] = round(1000 * (self._clock() - started_s), 1)
            self._log.end(record)

    async def _answer(self, scope: Scope, receive: Receive, reply: "_Reply") -> None:
        record = scope["state"]["record"]
        try:
            async with asyncio.timeout(self._timeout_s) as deadline:
                await self._app(scope, receive, reply)
            return
        except Refusal as error:
            refusal = error
        except TimeoutError as error:
            late = Refusal(408, f"not answered within {self._timeout_s:g} s", code="request_timeout")
            refusal = late if deadline.expired() else self._defect(record, error)
        except Exception as error:  # noqa: BLE001  it is logged, and the client gets its id
            refusal = self._defect(record, error)
        record["code"] = refusal.code
        await reply.fail(refusal, scope, receive)

    def _defect(self, record: dict[str, Any], error: Exception) -> Refusal:
        self._log.defect(record["request_id"], error)
        return internal_error(record["request_id"])


class _Reply:
    """Sends a reply on, with the headers that each has; knows how far it got."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self._is_stream = False
        self._has_ended = False
        self.status: int | None = None  # None: not begun

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers[REQUEST_ID_HEADER] = self._request_id
            for name, value in NO_SNIFFING.items():
                headers.setdefault(name, value)
            self._is_stream = headers.get("content-type", "").startswith("text/event-stream")
        self._has_ended = message["type"] == "http.response.body" and not message.get("more_body", False)
        await self._send(message)

    async def fail(self, refusal: Refusal, scope: Scope, receive: Receive) -> None:
        """As a whole reply, or as the last event of a stream. Any other reply that has begun is left cut off."""
        if self.status is None:
            await refusal.reply()(scope, receive, self)
        elif self._is_stream and not self._has_ended:
            await self({"type": "http.response.body", "body": stream_error(refusal).encode(), "more_body": False})


def _label(headers: Headers) -> str | None:
    """What the client calls its request; an id that the proxy made is none."""
    named = [headers[name] for name in LABEL_HEADERS if name in headers]
    return next((name for name in named if not OUR_ID.fullmatch(name)), None)


def state_of(scope: Scope) -> dict[str, Any]:
    """What `Frame` put there."""
    state: dict[str, Any] = scope["state"]
    return state
