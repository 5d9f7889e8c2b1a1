"""What every route has around it: error shapes, ids, a deadline, sizes, origins, keys, the log. Real application, no Ray."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from serving.config import KeyQuota, RequestLimits
from serving.guard.keys.key_file import add_key, revoke_key
from serving.guard.keys.quota import KeyUsage, LocalUsage
from tests.serving.front_door import ANSWER, SERVED_BY, FakeEngine, ask, error_of, front_door

BODY = {"prompt": "x", "max_tokens": 4}
CHUNK_BYTES = 2**16
SECRETS = ("Traceback", "/home", "/tmp", "rk_", "secret", "serving/")


def counter(**quota: int) -> LocalUsage:
    return LocalUsage(KeyUsage(KeyQuota(**quota), lease_s=60))


def door(state_dir: Path, engine: FakeEngine | None = None, **guard: Any) -> FastAPI:
    return front_door(engine or FakeEngine([SERVED_BY, ANSWER]), state_dir, **guard)


def log_of(state_dir: Path) -> list[dict[str, Any]]:
    [path] = (state_dir / "logs").glob("requests-*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/docs", 404),
        ("POST", "/v1/embeddings", 404),
        ("POST", "/v1/completions/", 404),
        ("POST", "/tokenize", 404),
        ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("OPTIONS", "/v1/chat/completions", 405),
        ("GET", "/v1/models/other", 404),
        ("GET", "/v1/models/" + "x" * 300, 400),
        ("POST", "/v1/%2e%2e/completions", 404),
    ],
)
def test_routes_that_are_not_there_answer_in_openais_form(tmp_path: Path, method: str, path: str, status: int) -> None:
    reply = ask(door(tmp_path), method, path)
    assert error_of(reply)[0] == status
    assert ("Allow" in reply.headers) == (status == 405)


def test_the_models_are_listed(tmp_path: Path) -> None:
    assert ask(door(tmp_path), "GET", "/v1/models/run").json()["id"] == "run"
    assert [model["id"] for model in ask(door(tmp_path), "GET", "/v1/models").json()["data"]] == ["run"]


def test_the_documentation_has_our_routes_and_the_fields_of_each(tmp_path: Path) -> None:
    schema = ask(door(tmp_path), "GET", "/openapi.json").json()
    assert set(schema["paths"]) == {"/v1/models", "/v1/models/{model}", "/v1/completions", "/v1/chat/completions"}
    body = schema["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"prompt", "max_tokens", "min_p"} <= set(body["properties"])


def test_a_defect_shows_nothing_but_the_id(tmp_path: Path) -> None:
    engine = FakeEngine([SERVED_BY, ZeroDivisionError("secret of /home/someone")])
    reply = ask(door(tmp_path, engine), json=BODY)
    assert error_of(reply) == (500, "internal_error")
    assert reply.headers["X-Request-ID"] in reply.json()["error"]["message"]
    assert not [word for word in SECRETS if word in reply.text]


def test_a_defect_within_a_stream_is_its_last_event(tmp_path: Path) -> None:
    engine = FakeEngine([SERVED_BY, ["data: 1\n\n"], ZeroDivisionError("secret")])
    reply = ask(door(tmp_path, engine), json={**BODY, "stream": True})
    first, last = reply.text.strip().split("\n\n")
    assert (first, json.loads(last.removeprefix("data: "))["error"]["code"]) == ("data: 1", "internal_error")
    assert "secret" not in reply.text


class SilentEngine(FakeEngine):
    """Yields what it is given, and then nothing, ever."""

    async def remote(self, body: Any, raw_request_info: object) -> AsyncIterator[Any]:
        async for item in super().remote(body, raw_request_info):
            yield item
        await asyncio.Event().wait()


def test_a_request_past_its_deadline_is_told(tmp_path: Path) -> None:
    assert error_of(ask(door(tmp_path, SilentEngine([SERVED_BY]), timeout_s=0.05), json=BODY)) == (408, "request_timeout")


def test_a_stream_past_its_deadline_is_told_in_its_last_event(tmp_path: Path) -> None:
    app = door(tmp_path, SilentEngine([SERVED_BY, ["data: 1\n\n"]]), timeout_s=0.05)
    first, last = ask(app, json={**BODY, "stream": True}).text.strip().split("\n\n")
    assert (first, json.loads(last.removeprefix("data: "))["error"]["code"]) == ("data: 1", "request_timeout")


async def endless(pieces: list[int]) -> AsyncIterator[bytes]:
    while True:
        pieces.append(CHUNK_BYTES)
        yield b"x" * CHUNK_BYTES


async def silent() -> AsyncIterator[bytes]:
    yield b"{"
    await asyncio.Event().wait()


def test_a_body_that_announces_too_much_is_refused_unread(tmp_path: Path) -> None:
    pieces: list[int] = []
    headers = {"Content-Type": "application/json", "Content-Length": "1048577"}
    assert error_of(ask(door(tmp_path), content=endless(pieces), headers=headers)) == (413, "request_too_large")
    assert pieces == []


def test_a_body_that_grows_too_large_is_read_no_further(tmp_path: Path) -> None:
    pieces: list[int] = []
    limits = RequestLimits(max_body_bytes=4 * CHUNK_BYTES)
    reply = ask(door(tmp_path, limits=limits), content=endless(pieces), headers={"Content-Type": "application/json"})
    assert error_of(reply) == (413, "request_too_large")
    assert len(pieces) <= 6


def test_a_body_that_does_not_come_is_not_waited_for(tmp_path: Path) -> None:
    app = door(tmp_path, limits=RequestLimits(body_timeout_s=0.05))
    assert error_of(ask(app, content=silent(), headers={"Content-Type": "application/json"})) == (408, "request_timeout")


def test_headers_are_bounded(tmp_path: Path) -> None:
    app = door(tmp_path, limits=RequestLimits(max_header_bytes=1024))
    assert ask(app, json=BODY, headers={"X-Long": "x" * 700}).status_code == 200
    assert error_of(ask(app, json=BODY, headers={"X-Long": "x" * 1024})) == (431, "headers_too_large")


@pytest.mark.parametrize(
    "headers",
    [{"Content-Type": "text/plain"}, {"Content-Type": "application/json", "Content-Encoding": "gzip"}, {}],
    ids=["a form of another origin", "compressed", "no type"],
)
def test_a_body_of_another_kind_is_refused(tmp_path: Path, headers: dict[str, str]) -> None:
    assert error_of(ask(door(tmp_path), content=json.dumps(BODY), headers=headers)) == (415, "unsupported_media_type")


def test_ids_are_made_here_and_a_clients_is_a_label(tmp_path: Path) -> None:
    engine = FakeEngine([SERVED_BY, ANSWER])
    replies = [
        ask(door(tmp_path, engine), json={**BODY, "request_id": "theirs"}, headers={"X-Request-ID": label})
        for label in ("theirs", "theirs", "x" * 500)
    ]
    ids = [reply.headers["X-Request-ID"] for reply in replies]
    assert [body.request_id for body in engine.bodies] == ids
    assert len(set(ids)) == 3
    assert all(request_id.startswith("req_") for request_id in ids)


def test_the_log_has_a_line_for_each_request_and_no_text_of_a_prompt(tmp_path: Path) -> None:
    app = door(tmp_path)
    label = "\x1b[31m\x9b" + "x" * 500
    ask(app, json={"prompt": "a secret", "model": "run"}, headers=[(b"x-request-id", label.encode("latin-1"))])
    ask(app, path="/nope%0d%0aforged", json={}, headers={"X-Request-ID": f"req_{'0' * 32}"})  # as from the proxy
    lines = (next((tmp_path / "logs").iterdir())).read_text()
    first, second = log_of(tmp_path)
    assert (first["status"], first["path"], first["client_request_id"]) == (200, "/v1/completions", label[:64])
    assert (second["status"], second["code"], second.get("client_request_id")) == (404, "no_such_route", None)
    assert first["duration_ms"] >= 0
    assert lines.isascii()
    assert "\x1b" not in lines
    assert "secret" not in lines


def test_no_page_of_another_origin_gets_in_unless_it_is_named(tmp_path: Path) -> None:
    preflight = {"Origin": "https://chat.example.org", "Access-Control-Request-Method": "POST"}
    for origins, is_allowed in (((), False), (("https://chat.example.org",), True), (("https://other.example.org",), False)):
        app = door(tmp_path, cors_origins=origins)
        reply = ask(app, "OPTIONS", headers=preflight)
        assert ("access-control-allow-origin" in reply.headers) == is_allowed
        reply = ask(app, json=BODY, headers={"Origin": preflight["Origin"]})
        assert ("access-control-allow-origin" in reply.headers) == is_allowed


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "keys.json"


@pytest.fixture
def key(key_file: Path) -> str:
    return add_key(key_file, "laptop")


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    for route in app.routes:
        methods: set[str] = route.methods  # type: ignore[attr-defined]  # all of ours have some
        yield from ((method, route.path) for method in methods)  # type: ignore[attr-defined]


def test_every_route_asks_for_a_key(tmp_path: Path, key_file: Path, key: str) -> None:
    app = door(tmp_path, keys=key_file, usage=counter())
    found = [*routes(app), ("POST", "/nope")]
    assert len(found) >= 6
    wrong = [{}, bearer("rk_wrong"), bearer(key[:-1]), bearer(key + "x"), {"Authorization": f"Basic {key}"}, bearer("x" * 9000)]
    for method, path in found:
        for headers in wrong:
            reply = ask(app, method, path, headers=headers)
            assert reply.status_code == 401, (method, path, headers)
            if method != "HEAD":
                assert error_of(reply)[1] in ("missing_api_key", "invalid_api_key")
        assert ask(app, method, path, headers=bearer(key)).status_code != 401


def test_a_key_of_another_scope_opens_no_route(tmp_path: Path, key_file: Path) -> None:
    app = door(tmp_path, keys=key_file, usage=counter())
    for_feedback = add_key(key_file, "app", ["feedback"])
    assert {ask(app, method, path, headers=bearer(for_feedback)).status_code for method, path in routes(app)} == {403}
    assert ask(app, json=BODY, headers=bearer(add_key(key_file, "bob", ["inference"]))).status_code == 200


def test_a_key_goes_no_further_than_the_gate(tmp_path: Path, key_file: Path, key: str) -> None:
    app = door(tmp_path, keys=key_file, usage=counter())
    assert ask(app, json=BODY, headers=bearer(key)).status_code == 200  # the engine got no headers, or it had failed
    replies = [ask(app, json={"prompt": key, "x": key}, headers=bearer(key)), ask(app, path=f"/{key}", headers=bearer(key))]
    assert not [reply for reply in replies if key in reply.text]
    lines = log_of(tmp_path)
    assert [line["key"] for line in lines] == ["laptop"] * 3
    assert key not in key_file.read_text()


def test_keys_are_added_and_revoked_without_a_restart(tmp_path: Path, key_file: Path, key: str) -> None:
    app = door(tmp_path, keys=key_file, usage=counter())
    other = add_key(key_file, "bob")
    assert [ask(app, json=BODY, headers=bearer(one)).status_code for one in (key, other)] == [200, 200]
    revoke_key(key_file, "laptop")
    assert [ask(app, json=BODY, headers=bearer(one)).status_code for one in (key, other)] == [401, 200]


@pytest.mark.parametrize(
    "damage", [lambda path: path.chmod(0o640), lambda path: path.write_text("{"), lambda path: path.unlink()]
)
def test_a_file_of_keys_that_cannot_be_trusted_lets_nobody_in(tmp_path: Path, key_file: Path, key: str, damage: Any) -> None:
    app = door(tmp_path, keys=key_file, usage=counter())
    assert ask(app, json=BODY, headers=bearer(key)).status_code == 200
    damage(key_file)
    reply = ask(app, json=BODY, headers=bearer(key))
    assert error_of(reply) == (503, "keys_unavailable")
    assert str(key_file) not in reply.text


def test_a_key_over_its_quota_waits_and_another_does_not(tmp_path: Path, key_file: Path, key: str) -> None:
    other = add_key(key_file, "bob")
    usage = counter(requests_per_minute=2, tokens_per_minute=1000)
    app = door(tmp_path, keys=key_file, usage=usage)
    statuses = [ask(app, json=BODY, headers=bearer(key)).status_code for _ in range(2)]
    reply = ask(app, json=BODY, headers=bearer(key))
    assert (statuses, error_of(reply)) == ([200, 200], (429, "rate_limit_exceeded"))
    assert 1 <= int(reply.headers["Retry-After"]) <= 60
    assert reply.json()["error"]["type"] == "rate_limit_error"
    assert ask(app, json=BODY, headers=bearer(other)).status_code == 200


def test_tokens_are_counted_before_they_are_made(tmp_path: Path, key_file: Path, key: str) -> None:
    engine = FakeEngine([SERVED_BY, ANSWER])
    app = door(tmp_path, engine, keys=key_file, usage=counter(tokens_per_minute=20))
    assert ask(app, json={"prompt": "x", "max_tokens": 15}, headers=bearer(key)).status_code == 200
    reply = ask(app, json={"prompt": "x", "max_tokens": 15}, headers=bearer(key))
    assert (error_of(reply), int(reply.headers["Retry-After"]) > 1) == ((429, "rate_limit_exceeded"), True)
    too_much = ask(app, json={"prompt": "x", "max_tokens": 100}, headers=bearer(key))
    assert (error_of(too_much)[0], "Retry-After" in too_much.headers) == (429, False)
    assert engine.num_calls == 1


def test_a_place_is_held_until_a_stream_has_ended(tmp_path: Path, key_file: Path, key: str) -> None:
    usage = counter(max_streams=1)
    engine = SilentEngine([SERVED_BY, ["data: 1\n\n"]])
    app = door(tmp_path, engine, keys=key_file, usage=usage, timeout_s=0.2)

    async def scenario() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", headers=bearer(key)) as client:
            first = asyncio.create_task(client.post("/v1/completions", json={**BODY, "stream": True}))
            while not engine.bodies:
                await asyncio.sleep(0)
            beside = await client.post("/v1/completions", json=BODY)
            await first
            after = await client.get("/v1/models/run")
            return [first.result().status_code, beside.status_code, after.status_code]

    assert asyncio.run(scenario()) == [200, 429, 200]
