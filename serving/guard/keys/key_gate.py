"""Lets requests with a good key in, as many as its quota allows."""

from collections.abc import Mapping
from typing import Final, Protocol

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.errors import DataError
from serving.api_errors import Refusal, retry_after
from serving.guard.frame import state_of
from serving.guard.keys.key_file import KeyFile
from serving.guard.keys.quota import Admission
from serving.guard.request_log import serve_logger

BEARER: Final = "bearer "
MAX_KEY_CHARS: Final = 256
LIMITED_HEADER: Final = "X-RateLimit-Scope"  # of a 429 that a quota is the reason of; `proxy` counts these
LIMITED_BY_KEY: Final = "key"


class UsageCounter(Protocol):
    """`KeyUsage`, wherever it is."""

    async def admit(self, key: str, request_id: str) -> Admission: ...

    async def spend(self, key: str, tokens: int) -> Admission: ...

    def release(self, key: str, request_id: str) -> None: ...


class KeyGate:
    """ASGI middleware. Puts the key's name into the request's state and log record; the key goes no further than here."""

    def __init__(self, app: ASGIApp, *, keys: KeyFile, usage: UsageCounter, scope: str) -> None:
        self._app = app
        self._keys = keys
        self._usage = usage
        self._scope = scope

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = state_of(scope)
        name = self._name(Headers(scope=scope).getlist("authorization"))
        state["record"]["key"] = state["key"] = name
        headers = [(header, value) for header, value in scope["headers"] if header.lower() != b"authorization"]
        check_admitted(await self._usage.admit(name, state["request_id"]))
        try:
            await self._app({**scope, "headers": headers}, receive, send)
        finally:
            self._usage.release(name, state["request_id"])

    def _name(self, presented: list[str]) -> str:
        challenge = {"WWW-Authenticate": "Bearer"}
        if not presented:
            raise Refusal(401, "send your key as Authorization: Bearer rk_...", code="missing_api_key", headers=challenge)
        scheme, key = presented[0][: len(BEARER)], presented[0][len(BEARER) :].strip()
        wrong = Refusal(401, "this key is not known here", code="invalid_api_key", headers=challenge)
        if len(presented) > 1 or scheme.lower() != BEARER or not key or len(key) > MAX_KEY_CHARS:
            raise wrong
        try:
            found = self._keys.find(key)
        except DataError as error:
            serve_logger.error("%s", error)
            raise Refusal(503, "keys cannot be checked now", code="keys_unavailable", headers=retry_after(1)) from error
        if found is None:
            raise wrong
        if self._scope not in found.scopes:
            raise Refusal(403, f"this key is not for {self._scope}", code="insufficient_scope")
        return found.name


def check_admitted(admission: Admission) -> None:
    """Raises `Refusal` with the time to wait."""
    if not admission.is_admitted:
        headers = retry_after(admission.wait_s) if admission.wait_s else {"x-should-retry": "false"}
        raise over_quota(admission.reason, headers)


def over_quota(reason: str, headers: Mapping[str, str]) -> Refusal:
    """429, marked for the proxy."""
    return Refusal(429, reason, code="rate_limit_exceeded", headers={**headers, LIMITED_HEADER: LIMITED_BY_KEY})
