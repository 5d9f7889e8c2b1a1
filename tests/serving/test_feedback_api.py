"""The feedback route without Ray: what is kept, and every error that a client can meet."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.errors import DataError
from cluster.processes.runtime import RaySession
from cluster.storage.feedback import FeedbackStore
from serving.app import serve_policy
from serving.config import RequestLimits, ServeConfig
from serving.feedback_api import MAX_MESSAGES, MAX_TEXT_CHARS, build_routes
from serving.guard.application import Guard
from serving.guard.keys.key_file import add_key
from serving.guard.keys.quota import Admission

MAX_BODY_BYTES = RequestLimits().max_body_bytes

BODY: dict[str, Any] = {
    "model": "tiny",
    "policy_version": 3,
    "messages": [{"role": "user", "content": "Well?"}],
    "chosen": "yes",
    "rejected": "no",
}
KEY = {"Idempotency-Key": "8f14e45f-ceea-4b6e-9f4c-2a1f0d3b5c77"}


@pytest.fixture
def store(tmp_path: Path) -> FeedbackStore:
    return FeedbackStore(tmp_path / "feedback.db")


def ask(store: FeedbackStore, method: str = "POST", path: str = "/v1/feedback", **request: Any) -> httpx.Response:
    """As Serve asks: its prefix is the application's root path."""

    async def ask_once() -> httpx.Response:
        guard = Guard(limits=RequestLimits(), timeout_s=60, log_folder=None)
        transport = httpx.ASGITransport(build_routes(store, guard, None), root_path="/v1/feedback", raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **request)

    return asyncio.run(ask_once())


def error_of(response: httpx.Response, store: FeedbackStore) -> tuple[int, str, str | None]:
    """(status, code, param) of an error in the form of the OpenAI API that gives nothing away."""
    assert "Traceback" not in response.text
    assert str(store.path.parent) not in response.text
    assert list(response.json()) == ["error"]
    error = response.json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["message"]
    assert error["type"] == ("server_error" if response.status_code >= 500 else "invalid_request_error")
    return response.status_code, error["code"], error["param"]


def test_a_preference_is_kept_as_it_was_posted(store: FeedbackStore) -> None:
    response = ask(store, headers=KEY, json=BODY)
    [record] = store.records()
    assert response.status_code == 200
    expected = {"id": record.feedback_id, "object": "feedback", "created": int(record.created_s), "is_new": True}
    assert response.json() == expected
    kept = record.preference
    assert record.idempotency_key == KEY["Idempotency-Key"]
    assert (kept.model, kept.policy_version, kept.chosen, kept.rejected) == ("tiny", 3, "yes", "no")
    assert [(message.role, message.content) for message in kept.messages] == [("user", "Well?")]


def test_the_policy_version_may_be_unknown(store: FeedbackStore) -> None:
    assert ask(store, headers=KEY, json={key: BODY[key] for key in BODY if key != "policy_version"}).status_code == 200
    assert [record.preference.policy_version for record in store.records()] == [None]


def test_a_replay_gets_the_same_answer_and_makes_no_second_record(store: FeedbackStore) -> None:
    first = ask(store, headers=KEY, json=BODY).json()
    again = ask(store, headers=KEY, content=json.dumps(BODY, indent=3)).json()
    assert again == {**first, "is_new": False}
    assert len(list(store.records())) == 1


def test_a_key_with_another_preference_is_a_conflict(store: FeedbackStore) -> None:
    ask(store, headers=KEY, json=BODY)
    response = ask(store, headers=KEY, json={**BODY, "chosen": "maybe"})
    assert error_of(response, store) == (409, "idempotency_key_reused", "Idempotency-Key")
    assert [record.preference.chosen for record in store.records()] == ["yes"]


@pytest.mark.parametrize(
    "headers", [[], [("Idempotency-Key", "")], [("Idempotency-Key", "a b")], [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]]
)
def test_a_post_without_one_good_key_is_refused(store: FeedbackStore, headers: list[tuple[str, str]]) -> None:
    response = ask(store, headers=headers, json=BODY)
    assert error_of(response, store) == (400, "invalid_idempotency_key", "Idempotency-Key")
    assert list(store.records()) == []


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": None}, "model"),
        ({"model": "../../etc"}, "model"),
        ({"model": "a\r\nb"}, "model"),
        ({"policy_version": -1}, "policy_version"),
        ({"policy_version": "3"}, "policy_version"),
        ({"policy_version": 3.0}, "policy_version"),
        ({"policy_version": True}, "policy_version"),
        ({"policy_version": 2**63}, "policy_version"),
        ({"messages": []}, "messages"),
        ({"messages": "Well?"}, "messages"),
        ({"messages": BODY["messages"] * (MAX_MESSAGES + 1)}, "messages"),
        ({"messages": [{"role": "judge", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "messages.0.name"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"chosen": 1}, "chosen"),
        ({"chosen": "x" * (MAX_TEXT_CHARS + 1)}, "chosen"),
        ({"chosen": BODY["rejected"]}, None),
        ({"reward": 1}, "reward"),
        ({"x" * 1000: 1}, "x" * 64),
    ],
)
def test_a_body_that_breaks_the_schema_is_refused(store: FeedbackStore, change: dict[str, Any], param: str | None) -> None:
    assert error_of(ask(store, headers=KEY, json={**BODY, **change}), store) == (400, "invalid_feedback", param)
    assert list(store.records()) == []


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"[1]", b"{", b"\xff\xfe", b"[" * 100_000, json.dumps(BODY).replace("yes", "\\ud800").encode()],
    ids=["empty", "null", "list", "cut", "no UTF-8", "deep", "half a character"],
)
def test_a_body_that_is_no_object_is_refused(store: FeedbackStore, content: bytes) -> None:
    assert error_of(ask(store, headers=KEY, content=content), store) == (400, "invalid_feedback", None)


def test_many_problems_are_not_all_told(store: FeedbackStore) -> None:
    response = ask(store, headers=KEY, json={str(number): 0 for number in range(50_000)})
    assert error_of(response, store)[:2] == (400, "invalid_feedback")
    assert len(response.text) < 1000


def test_the_largest_body_is_taken(store: FeedbackStore) -> None:
    content = json.dumps(BODY).encode()
    assert ask(store, headers=KEY, content=content + b" " * (MAX_BODY_BYTES - len(content))).status_code == 200


def test_a_body_that_announces_too_much_is_refused_unread(store: FeedbackStore) -> None:
    pieces: list[bytes] = []
    headers = {**KEY, "Content-Length": str(MAX_BODY_BYTES + 1)}
    response = ask(store, headers=headers, content=endless(pieces))
    assert error_of(response, store) == (413, "request_too_large", None)
    assert pieces == []


def test_a_body_that_grows_too_large_is_read_no_further(store: FeedbackStore) -> None:
    pieces: list[bytes] = []
    response = ask(store, headers=KEY, content=endless(pieces))
    assert error_of(response, store) == (413, "request_too_large", None)
    assert sum(map(len, pieces)) <= MAX_BODY_BYTES + 2 * PIECE_BYTES
    assert list(store.records()) == []


PIECE_BYTES = 2**16


async def endless(pieces: list[bytes]) -> AsyncIterator[bytes]:
    while True:
        pieces.append(b"x" * PIECE_BYTES)
        yield pieces[-1]


def test_what_the_disk_refuses_is_not_acknowledged(store: FeedbackStore) -> None:
    connection = sqlite3.connect(store.path)
    connection.execute("CREATE TRIGGER full BEFORE INSERT ON feedback BEGIN SELECT RAISE(FAIL, 'disk is full'); END")
    assert error_of(ask(store, headers=KEY, json=BODY), store) == (503, "feedback_not_kept", None)
    connection.execute("DROP TRIGGER full")
    assert ask(store, headers=KEY, json=BODY).json()["is_new"] is True


def test_a_broken_row_does_not_show_the_file(store: FeedbackStore) -> None:
    ask(store, headers=KEY, json=BODY)
    connection = sqlite3.connect(store.path)
    connection.execute("UPDATE feedback SET messages = 'x'")
    connection.commit()
    assert error_of(ask(store, headers=KEY, json=BODY), store) == (503, "feedback_not_kept", None)


def test_a_defect_does_not_show_itself(store: FeedbackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("in a place nobody should know")

    monkeypatch.setattr(FeedbackStore, "add", fail)
    response = ask(store, headers=KEY, json=BODY)
    assert error_of(response, store) == (500, "internal_error", None)
    assert "nobody" not in response.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/feedback", 405),
        ("OPTIONS", "/v1/feedback", 405),  # a browser asks so for a page of another origin; there is no yes
        ("DELETE", "/v1/feedback", 405),
        ("POST", "/v1/feedback/", 404),
        ("GET", "/v1/feedback/docs", 404),
        ("GET", "/v1/feedback/openapi.json", 404),
        ("POST", "/v1/feedback/v1/feedback", 404),
        ("POST", "/", 404),
    ],
)
def test_there_is_one_route(store: FeedbackStore, method: str, path: str, status: int) -> None:
    headers = {**KEY, "Origin": "http://example.org", "Access-Control-Request-Method": "POST"}
    response = ask(store, method, path, headers=headers)
    assert error_of(response, store) == (status, "no_such_route", None)
    assert response.headers.get("Allow") == ("POST" if status == 405 else None)
    assert "access-control-allow-origin" not in response.headers


class FreeUsage:
    """Lets every request in."""

    async def admit(self, key: str, request_id: str) -> Admission:
        return Admission(is_admitted=True)

    async def spend(self, key: str, tokens: int) -> Admission:
        return Admission(is_admitted=True)

    def release(self, key: str, request_id: str) -> None: ...


def test_a_preference_needs_a_key_for_feedback(store: FeedbackStore, tmp_path: Path) -> None:
    keys = {scope: add_key(tmp_path / "keys.json", scope, [scope]) for scope in ("feedback", "inference")}
    guard = Guard(limits=RequestLimits(), timeout_s=60, log_folder=None, keys=tmp_path / "keys.json")

    async def post(authorization: dict[str, str]) -> int:
        transport = httpx.ASGITransport(build_routes(store, guard, FreeUsage()), root_path="/v1/feedback")
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return (await client.post("/v1/feedback", headers={**KEY, **authorization}, json=BODY)).status_code

    given = [{}, *[{"Authorization": f"Bearer {keys[scope]}"} for scope in ("inference", "feedback")]]
    assert [asyncio.run(post(authorization)) for authorization in given] == [401, 403, 200]


@pytest.mark.usefixtures("no_ray")
def test_a_file_that_cannot_be_used_is_refused_before_ray_starts(tmp_path: Path) -> None:
    policy = tmp_path / "policy"
    policy.mkdir()
    for part in ("config.json", "model.safetensors", "tokenizer.json"):
        (policy / part).write_text("{}")
    (tmp_path / "notes.txt").write_text("no database\n" * 100)
    for feedback, problem in (("nowhere/feedback.db", "No such file or directory"), ("notes.txt", "file is not a database")):
        with pytest.raises(DataError, match=problem):
            serve_policy(ServeConfig(model=str(policy), port=0, feedback=str(tmp_path / feedback)), start=must_not_start)


def must_not_start() -> RaySession:
    raise AssertionError("Ray was started")
