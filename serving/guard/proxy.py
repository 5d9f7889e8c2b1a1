"""What Serve's HTTP proxy runs around itself, before a request reaches any application.

The proxy obeys some headers of clients (its own time-out, its request id), keeps a body in memory as fast as it comes, and
answers in plain text. Serve takes middleware for it by an environment variable only, which a Ray that runs already does not see:
there, applications guard themselves all the same, and replies that the proxy makes by itself stay plain text.
"""

import os
from collections.abc import Callable, Mapping, MutableMapping
from functools import partial
from typing import Any, Final

from pydantic import Field
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.config import StrictConfig
from serving.api_errors import RETRY_AFTER_S, Refusal, internal_error, overloaded, retry_after, unavailable
from serving.config import RequestLimits
from serving.guard.body_limit import BodyLimit
from serving.guard.engine_places import EnginePlaces
from serving.guard.frame import REQUEST_ID_HEADER, new_request_id
from serving.guard.keys.key_gate import LIMITED_BY_KEY, LIMITED_HEADER, over_quota
from serving.guard.keys.quota import RefusalBudget
from serving.guard.request_log import RequestLog

CALLBACK_VARIABLE: Final = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
LIMITS_VARIABLE: Final = "RAYWARD_ENDPOINT_LIMITS"  # ProxyLimits as JSON
CLIENT_LABEL: Final = b"x-client-request-id"
OBEYED_HEADERS: Final = frozenset(  # by the proxy; it takes - and _ for the same
    {
        "x-request-id",
        "x-request-timeout-seconds",
        "x-request-disconnect-disabled",
        "x-session-id",
        "serve-multiplexed-model-id",
    }
)
SAID_BY_THE_PROXY: Final[Mapping[int, Refusal]] = {
    404: Refusal(  # applications answer for their routes, so there is none yet, or none any more
        503, "the endpoint starts or stops; try again later", code="engine_unavailable", headers=retry_after(RETRY_AFTER_S)
    ),
    408: Refusal(408, "not answered in time", code="request_timeout"),
    429: overloaded(),
    503: unavailable(),
}


class ProxyLimits(StrictConfig):
    """What the proxy refuses by itself."""

    requests: RequestLimits = RequestLimits()
    num_engine_places: int = Field(ge=1)
    """Requests for engines that are inside of one or wait; the next one is refused."""


def arrange(environment: MutableMapping[str, str], limits: ProxyLimits) -> None:
    """For processes that inherit `environment`: proxies that start among them use `ProxyGuard`."""
    environment[CALLBACK_VARIABLE] = f"{__name__}.middlewares"
    environment[LIMITS_VARIABLE] = limits.model_dump_json()


def middlewares() -> list[Middleware]:
    """Called by Serve in the proxy's process."""
    return [Middleware(ProxyGuard, limits=ProxyLimits.model_validate_json(os.environ[LIMITS_VARIABLE]))]


class ProxyGuard:
    """ASGI middleware around the proxy. Gives each request an id of ours, bounds its body and how many there are, and puts
    replies into one form."""

    def __init__(self, app: ASGIApp, *, limits: ProxyLimits) -> None:
        places = EnginePlaces(app, num_places=limits.num_engine_places)
        self._app = BodyLimit(places, limits=limits.requests)  # a body that is still coming takes none
        self._log = RequestLog(None)
        self._budget = RefusalBudget()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = new_request_id()
        authorization = Headers(scope=scope).get("authorization")
        reply = _OneForm(send, request_id, None if authorization is None else partial(self._budget.note, authorization))
        try:
            if authorization is not None and self._budget.is_spent(authorization):
                raise over_quota("this key is over its limits; wait as Retry-After says", retry_after(RETRY_AFTER_S))
            await self._app({**scope, "headers": _headers(scope, request_id)}, receive, reply)
        except Refusal as error:
            refusal = error
        except Exception as error:  # noqa: BLE001 - it is logged, and the client gets its id
            self._log.defect(request_id, error)
            refusal = internal_error(request_id)
        else:
            return
        if not reply.has_begun:
            await refusal.reply()(scope, receive, reply)


class _OneForm:
    """One request id in a reply, and OpenAI's form where the proxy itself says what is wrong."""

    def __init__(self, send: Send, request_id: str, note_over_quota: Callable[[], None] | None) -> None:
        """`note_over_quota` is told where an application refuses because of a key's quota."""
        self._send = send
        self._request_id = request_id
        self._note_over_quota = note_over_quota
        self._is_replaced = False
        self.has_begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = Headers(raw=message["headers"])
            if self._note_over_quota is not None and headers.get(LIMITED_HEADER) == LIMITED_BY_KEY:
                self._note_over_quota()
            if message["status"] >= 400 and headers.get("content-type", "").startswith("text/plain"):
                self._is_replaced = True
                refusal = SAID_BY_THE_PROXY.get(message["status"]) or internal_error(self._request_id)
                await refusal.reply()(_NO_SCOPE, _no_more, self._begin)
                return
            await self._begin(message)
        elif not self._is_replaced:
            await self._begin(message)

    async def _begin(self, message: Message) -> None:
        self.has_begun = True
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=list(message["headers"]))
            [first, *_] = headers.getlist(REQUEST_ID_HEADER) or [self._request_id]  # the application's, then the proxy's
            headers[REQUEST_ID_HEADER] = first
            message = {**message, "headers": headers.raw}
        await self._send(message)


_NO_SCOPE: Final[dict[str, Any]] = {"type": "http"}


async def _no_more() -> Message:
    return {"type": "http.disconnect"}


def _headers(scope: Scope, request_id: str) -> list[tuple[bytes, bytes]]:
    kept = []
    for name, value in scope["headers"]:
        plain = name.decode("latin-1").lower().replace("_", "-")
        if plain not in OBEYED_HEADERS:
            kept.append((name, value))
        elif plain == "x-request-id":
            kept.append((CLIENT_LABEL, value))
    return [*kept, (REQUEST_ID_HEADER.lower().encode(), request_id.encode())]
