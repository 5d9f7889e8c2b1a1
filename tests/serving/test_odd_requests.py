"""Whatever is sent, the application answers, with no 5xx, in one form, and without our texts."""

from pathlib import Path

import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings

from serving.api_errors import PATH
from tests.serving.front_door import ANSWER, SERVED_BY, FakeEngine, ask, error_of, front_door
from tests.serving.odd_requests import OddRequest, odd_requests


@pytest.fixture(scope="module", params=[False, True], ids=["without tools", "with tools"])
def app(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    engine = FakeEngine(answer=lambda body: [SERVED_BY, ["data: [DONE]\n\n"] if body.stream else ANSWER])
    return front_door(engine, tmp_path_factory.mktemp("state"), takes_tools=request.param)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(odd=odd_requests())
def test_every_request_is_answered_or_refused_in_one_form(app: FastAPI, odd: OddRequest) -> None:
    reply = ask(app, odd.method, odd.path, headers=odd.headers, content=odd.content)
    assert reply.status_code < 500
    assert reply.headers["X-Request-ID"].startswith("req_")
    if reply.status_code != 200:
        error_of(reply)
        message = reply.json()["error"]["message"]
        assert len(message) < 3000
        assert message.isprintable()
        assert "Traceback" not in message
        assert not PATH.search(message.replace("/v1", ""))


def test_a_path_of_ours_is_found_by_the_check() -> None:
    assert Path("/home/someone/x").as_posix() == PATH.findall("at /home/someone/x now")[0]
