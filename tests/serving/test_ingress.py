"""What the front door makes of what its engines say, and of engines that are lost. No Ray, no vLLM engine."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import DeploymentUnavailableError

from serving import ingress
from tests.serving.front_door import ANSWER, SERVED_BY, FakeEngine, ask, error_of, front_door

from serving.policy_server import EngineLost, ServedBy  # isort: skip  # vLLM is imported by `front_door`
from vllm.entrypoints.serve.engine.protocol import ErrorInfo, ErrorResponse  # isort: skip

from serving.ingress import VERSION_HEADER  # isort: skip

REFUSED = 'data: {"error": {"message": "no such token", "type": "BadRequestError", "code": 400}}\n\n'
FAILED = 'data: {"error": {"message": "secret of the house", "type": "InternalServerError", "code": 500}}\n\n'
NOT_TAKEN = EngineLost(had_begun=False)
KILLED = EngineLost(had_begun=True)
CRASHED = EngineLost(had_begun=True, has_crashed=True, was_alone=True)
CRASHED_AMONG_OTHERS = EngineLost(had_begun=True, has_crashed=True)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingress, "ASK_AGAIN_AFTER_S", 0.0)


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path


def complete(engine: FakeEngine, state_dir: Path, **fields: Any) -> httpx.Response:
    return ask(front_door(engine, state_dir), json={"model": "run", "prompt": "x", "max_tokens": 4, **fields})


def chat(engine: FakeEngine, state_dir: Path, **fields: Any) -> httpx.Response:
    body = {"model": "run", "messages": [{"role": "user", "content": "x"}], **fields}
    return ask(front_door(engine, state_dir), path="/v1/chat/completions", json=body)


@pytest.mark.parametrize("send", [complete, chat])
def test_a_reply_names_its_version(send: Any, state_dir: Path) -> None:
    reply = send(FakeEngine([SERVED_BY, ANSWER]), state_dir)
    assert (reply.status_code, reply.headers[VERSION_HEADER]) == (200, "7")
    assert (reply.json()["model"], reply.json()["system_fingerprint"]) == ("run", "policy-v7")


def test_a_folder_that_is_no_version_has_no_header(state_dir: Path) -> None:
    reply = complete(FakeEngine([ServedBy(policy_version=None), ANSWER]), state_dir)
    assert VERSION_HEADER not in reply.headers
    assert reply.json()["system_fingerprint"] == "policy"


def test_a_stream_names_its_version_and_leaves_texts_alone(state_dir: Path) -> None:
    event = json.dumps({"text": '"system_fingerprint":"x"', "system_fingerprint": "vllm-1"}, separators=(",", ":"))
    reply = complete(FakeEngine([SERVED_BY, [f"data: {event}\n\n"], ["data: [DONE]\n\n"]]), state_dir, stream=True)
    first, last = reply.text.strip().split("\n\n")
    assert json.loads(first.removeprefix("data: ")) == {"text": '"system_fingerprint":"x"', "system_fingerprint": "policy-v7"}
    assert (reply.headers[VERSION_HEADER], last) == ("7", "data: [DONE]")


@pytest.mark.parametrize("lost", [[NOT_TAKEN], [ActorDiedError()]])
def test_a_request_that_no_engine_took_is_asked_until_one_does(state_dir: Path, lost: list[Any]) -> None:
    engine = FakeEngine(lost, lost, lost, [SERVED_BY, ANSWER])
    assert complete(engine, state_dir).status_code == 200
    assert engine.num_calls == 4


@pytest.mark.parametrize("lost", [[SERVED_BY, KILLED], [SERVED_BY, ActorDiedError()]])
def test_a_request_inside_an_engine_that_was_killed_goes_to_one_other(state_dir: Path, lost: list[Any]) -> None:
    engine = FakeEngine(lost, [SERVED_BY, ANSWER])
    assert complete(engine, state_dir).status_code == 200
    assert engine.num_calls == 2


def test_a_request_that_loses_two_replicas_gets_no_third(state_dir: Path) -> None:
    engine = FakeEngine([SERVED_BY, ActorDiedError()])
    assert error_of(complete(engine, state_dir)) == (500, "engine_lost")
    assert engine.num_calls == 2
    assert error_of(complete(engine, state_dir)) == (400, "request_held")
    assert engine.num_calls == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_an_engine_died_of_reaches_no_other(state_dir: Path, stream: bool) -> None:
    engine = FakeEngine([SERVED_BY, CRASHED], [SERVED_BY, ANSWER])
    reply = complete(engine, state_dir, stream=stream)
    assert error_of(reply) == (500, "engine_lost")
    assert reply.headers["x-should-retry"] == "false"
    assert error_of(complete(engine, state_dir, stream=not stream)) == (400, "request_refused")
    assert error_of(complete(engine, state_dir, user="other")) == (400, "request_refused")
    assert engine.num_calls == 1
    assert complete(engine, state_dir, prompt="y").status_code == 200


def test_a_stream_that_an_engine_died_of_is_written_down(state_dir: Path) -> None:
    engine = FakeEngine([SERVED_BY, ["data: 1\n\n"], CRASHED])
    reply = complete(engine, state_dir, stream=True)
    assert [json.loads(reply.text.split("data: ")[2])["error"]["code"], reply.status_code] == ["engine_lost", 200]
    assert error_of(complete(engine, state_dir, stream=True)) == (400, "request_refused")


def test_one_of_several_that_an_engine_died_of_is_held(state_dir: Path) -> None:
    engine = FakeEngine([SERVED_BY, CRASHED_AMONG_OTHERS])
    assert error_of(complete(engine, state_dir)) == (500, "engine_lost")
    assert error_of(complete(engine, state_dir)) == (400, "request_held")
    assert engine.num_calls == 1


def test_a_stream_that_has_not_begun_goes_to_another_replica(state_dir: Path) -> None:
    engine = FakeEngine([SERVED_BY, KILLED], [SERVED_BY, ["data: 1\n\n"], ["data: [DONE]\n\n"]])
    reply = complete(engine, state_dir, stream=True)
    assert (reply.status_code, reply.text) == (200, "data: 1\n\ndata: [DONE]\n\n")


@pytest.mark.parametrize("end", [[KILLED], [[FAILED, "data: [DONE]\n\n"]], [["data: x\n\n", FAILED]], [ActorDiedError()]])
def test_a_stream_that_loses_its_engine_does_not_claim_an_end(state_dir: Path, end: list[Any]) -> None:
    engine = FakeEngine([SERVED_BY, ["data: 1\n\n"], ["data: 2\n\n"], *end])
    reply = complete(engine, state_dir, stream=True)
    events = reply.text.strip().split("\n\n")
    assert events[:2] == ["data: 1", "data: 2"]
    assert json.loads(events[2].removeprefix("data: "))["error"]["code"] in ("engine_lost", "engine_failed")
    assert len(events) == 3
    assert "secret" not in reply.text
    assert engine.num_calls == 1  # the client has seen a part of it


def test_a_stream_that_the_engine_refuses_is_refused_once(state_dir: Path) -> None:
    engine = FakeEngine([SERVED_BY, [REFUSED, "data: [DONE]\n\n"]])
    reply = complete(engine, state_dir, stream=True)
    assert (error_of(reply), reply.json()["error"]["message"]) == ((400, "invalid_request"), "no such token")
    assert engine.num_calls == 1


def test_a_request_that_an_engine_fails_and_survives_is_failed_once(state_dir: Path) -> None:
    engine = FakeEngine([SERVED_BY, [FAILED]])
    reply = complete(engine, state_dir, stream=True)
    assert error_of(reply) == (500, "engine_failed")
    assert "secret" not in reply.text
    assert engine.num_calls == 1


def test_no_engine_at_all_is_told_after_a_while(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingress, "ASK_FOR_S", 0.02)
    reply = complete(FakeEngine([ActorDiedError()]), state_dir)
    assert (error_of(reply), reply.headers["Retry-After"]) == ((503, "engine_unavailable"), "1")


def test_an_application_without_engines_is_told_at_once(state_dir: Path) -> None:
    engine = FakeEngine([DeploymentUnavailableError("PolicyServer of rayward")])
    reply = complete(engine, state_dir)
    assert (error_of(reply), engine.num_calls) == ((503, "engine_unavailable"), 1)
    assert "PolicyServer" not in reply.text


@pytest.mark.parametrize(
    ("param", "asked", "code"),
    [
        ("input_tokens", {}, "context_length_exceeded"),
        ("input_text", {}, "context_length_exceeded"),
        ("max_tokens", {}, "context_length_exceeded"),  # the engine found no room, the client had asked for four
        ("max_tokens", {"max_tokens": 0}, "invalid_request"),
        ("max_tokens", {"max_tokens": 129}, "invalid_request"),  # more than the whole context: the prompt is not to blame
        ("temperature", {}, "invalid_request"),
    ],
)
def test_a_prompt_beyond_the_context_has_openais_code(state_dir: Path, param: str, asked: dict[str, Any], code: str) -> None:
    refusal = ErrorResponse(error=ErrorInfo(message="no", type="BadRequestError", code=400, param=param))
    assert error_of(complete(FakeEngine([SERVED_BY, refusal]), state_dir, **asked)) == (400, code)


def test_an_unknown_model_is_not_found(state_dir: Path) -> None:
    engine = FakeEngine([])
    reply = complete(engine, state_dir, model="o\x1b" * 100)
    assert error_of(reply) == (404, "model_not_found")
    assert len(reply.text) < 700
    assert engine.num_calls == 0
