"""What Serve's proxy runs around itself. The proxy is played by an application that answers as it does."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from serving.config import RequestLimits
from serving.guard.keys.key_gate import over_quota
from serving.guard.keys.quota import MAX_REFUSALS
from serving.guard.proxy import CALLBACK_VARIABLE, LIMITS_VARIABLE, ProxyGuard, ProxyLimits, arrange, middlewares
from tests.serving.front_door import error_of


class FakeProxy:
    """Repeats the id of a request in a second header, as Serve's own middleware does."""

    def __init__(self, status: int = 200, text: str = "fine", headers: dict[str, str] | None = None) -> None:
        self._reply = PlainTextResponse(text, status, headers)
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers = scope["headers"]
        self.body = (await receive())["body"]
        reply = PlainTextResponse(self._reply.body, self._reply.status_code)
        reply.raw_headers = [*self._reply.raw_headers, (b"x-request-id", dict(self.headers)[b"x-request-id"])]
        await reply(scope, receive, send)


def limits(*, num_engine_places: int = 8, **requests: Any) -> ProxyLimits:
    return ProxyLimits(requests=RequestLimits(**requests), num_engine_places=num_engine_places)


def ask(proxy: Any, **request: Any) -> httpx.Response:
    async def ask_once() -> httpx.Response:
        transport = httpx.ASGITransport(ProxyGuard(proxy, limits=limits(max_body_bytes=1024)))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/v1/completions", **request)

    return asyncio.run(ask_once())


def test_headers_that_the_proxy_obeys_do_not_reach_it() -> None:
    proxy = FakeProxy()
    sent = [
        (b"X-Request-Id", b"\xff\x9b31m"),
        (b"x_request_id", b"second"),
        (b"X-Request-Timeout-Seconds", b"-1"),
        (b"x-request-disconnect-disabled", b"?1"),
        (b"x_session_id", b"\xff"),
        (b"serve_multiplexed_model_id", b"\xff"),
        (b"Authorization", b"Bearer x"),
    ]
    reply = ask(proxy, headers=sent, content=b"{}")
    names = [name for name, _ in proxy.headers]
    assert names.count(b"x-request-id") == 1
    assert (b"x-client-request-id", b"\xff\x9b31m") in proxy.headers
    assert b"authorization" in names
    assert not [name for name in names if b"timeout" in name or b"session" in name or b"model" in name or b"disabled" in name]
    assert (reply.status_code, proxy.body) == (200, b"{}")
    assert reply.headers.get_list("X-Request-ID") == [dict(proxy.headers)[b"x-request-id"].decode()]


def test_the_id_of_the_application_is_the_one_that_is_told() -> None:
    reply = ask(FakeProxy(headers={"X-Request-ID": "req_of_the_application"}), content=b"{}")
    assert reply.headers.get_list("X-Request-ID") == ["req_of_the_application"]


@pytest.mark.parametrize(
    ("status", "told", "code"),
    [
        (404, 503, "engine_unavailable"),
        (408, 408, "request_timeout"),
        (429, 429, "overloaded"),
        (503, 503, "engine_unavailable"),
        (500, 500, "internal_error"),
    ],
)
def test_what_the_proxy_says_itself_has_openais_form(status: int, told: int, code: str) -> None:
    reply = ask(FakeProxy(status, "Request dropped: max_queued_requests=256, deployment PolicyIngress"), content=b"{}")
    assert error_of(reply) == (told, code)
    assert "PolicyIngress" not in reply.text
    assert ("Retry-After" in reply.headers) == (told in (429, 503))


def test_a_key_that_does_not_wait_is_refused_without_a_front_door() -> None:
    num_calls = 0

    async def front_door(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal num_calls
        num_calls += 1
        refusal = over_quota("2 requests of this key are in progress", {"Retry-After": "1"})
        is_greedy = Headers(scope=scope).get("authorization") == "Bearer rk_greedy"
        await (refusal.reply() if is_greedy else PlainTextResponse("fine"))(scope, receive, send)

    guard = ProxyGuard(front_door, limits=limits())

    async def ask_all() -> list[httpx.Response]:
        keys = ["rk_greedy"] * (MAX_REFUSALS + 3) + ["rk_other"]
        async with httpx.AsyncClient(transport=httpx.ASGITransport(guard), base_url="http://test") as client:
            return [await client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}) for key in keys]

    *greedy, other = asyncio.run(ask_all())
    assert [error_of(reply) for reply in greedy] == [(429, "rate_limit_exceeded")] * len(greedy)
    assert [reply.headers["Retry-After"] for reply in greedy] == ["1"] * len(greedy)
    assert greedy[-1].headers["X-Request-ID"].startswith("req_")
    assert (num_calls, other.text) == (MAX_REFUSALS + 1, "fine")


def test_a_request_too_many_is_refused_without_the_proxy() -> None:
    """Two places. While both are taken, only what asks no engine passes."""
    num_calls = 0

    async def busy_engine(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal num_calls
        num_calls += 1
        if scope["path"] == "/v1/completions":
            await is_done.wait()
        await PlainTextResponse("fine")(scope, receive, send)

    guard = ProxyGuard(busy_engine, limits=limits(num_engine_places=2))
    is_done = asyncio.Event()

    async def ask_all() -> tuple[list[httpx.Response], list[httpx.Response], httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(guard), base_url="http://test") as client:
            inside = [asyncio.create_task(client.post("/v1/completions", content=b"{}")) for _ in range(2)]
            while num_calls < 2:
                await asyncio.sleep(0)
            beside = [await client.post("/v1/chat/completions", content=b"{}"), await client.get("/v1/models")]
            is_done.set()
            return await asyncio.gather(*inside), beside, await client.post("/v1/completions", content=b"{}")

    inside, [refused, listed], later = asyncio.run(ask_all())
    assert error_of(refused) == (429, "overloaded")
    assert refused.headers["Retry-After"] == "1"
    assert refused.headers["X-Request-ID"].startswith("req_")
    assert [reply.text for reply in (*inside, listed, later)] == ["fine"] * 4
    assert num_calls == 4


def test_an_answer_of_the_proxy_that_is_no_error_passes() -> None:
    assert ask(FakeProxy(), content=b"{}").text == "fine"


def test_a_defect_of_the_proxy_shows_nothing() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise UnicodeDecodeError("utf-8", b"secret", 0, 1, "in /home/someone")

    reply = ask(broken, content=b"{}")
    assert error_of(reply) == (500, "internal_error")
    assert "secret" not in reply.text


def test_a_body_without_end_is_stopped_before_the_proxy_keeps_it() -> None:
    proxy, pieces = FakeProxy(), []

    async def endless() -> AsyncIterator[bytes]:
        while True:
            pieces.append(1)
            yield b"x" * 512

    assert error_of(ask(proxy, content=endless())) == (413, "request_too_large")
    assert (proxy.headers, len(pieces) <= 4) == ([], True)


def test_serve_finds_it_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    environment: dict[str, str] = {}
    arrange(environment, limits(max_body_bytes=2000))
    module, _, function = environment[CALLBACK_VARIABLE].rpartition(".")
    assert (module, function) == (middlewares.__module__, middlewares.__name__)
    monkeypatch.setenv(LIMITS_VARIABLE, environment[LIMITS_VARIABLE])
    [middleware] = middlewares()
    assert middleware.kwargs["limits"] == limits(max_body_bytes=2000)
