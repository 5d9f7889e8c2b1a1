"""Settings that reach Serve and vLLM, and whose applications an end takes with it. Serve is played by a small fake."""

from types import SimpleNamespace

import pytest
from ray import serve
from ray.serve.exceptions import RayServeException

from serving.app import APP_NAME, callers_logging_kept, stop_applications
from serving.config import RequestLimits, ServeConfig

with callers_logging_kept():
    from serving.deployment import engine_arguments


def test_parsers_are_vllms_and_off_by_default() -> None:
    names = {"enable_auto_tool_choice", "tool_call_parser", "reasoning_parser"}
    assert not names & engine_arguments(ServeConfig(model="x")).keys()
    arguments = engine_arguments(ServeConfig(model="x", tool_parser="hermes", reasoning_parser="qwen3"))
    assert {name: arguments[name] for name in sorted(names)} == {
        "enable_auto_tool_choice": True,
        "reasoning_parser": "qwen3",
        "tool_call_parser": "hermes",
    }


def test_the_engine_gives_as_many_alternatives_as_a_request_may_ask_for() -> None:
    assert engine_arguments(ServeConfig(model="x", limits=RequestLimits(max_logprobs=33)))["max_logprobs"] == 33


def test_a_drain_is_no_longer_than_a_request() -> None:
    assert ServeConfig(model="x", request_timeout_s=5).drain_s == 5
    assert ServeConfig(model="x", request_timeout_s=500, drain_timeout_s=7).drain_s == 7


class FakeServe:
    """Applications by name; deleting one may take several waits."""

    def __init__(self, *names: str, waits: int = 0) -> None:
        self.applications = dict.fromkeys(names)
        self.waits = waits
        self.acts: list[str] = []

    def status(self) -> SimpleNamespace:
        return SimpleNamespace(applications=dict(self.applications))

    def delete(self, name: str) -> None:
        self.acts.append(name)
        if self.waits:
            self.waits -= 1
            raise TimeoutError
        del self.applications[name]

    def shutdown(self) -> None:
        self.acts.append("shutdown")


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[FakeServe]:
    """The one that is put here is Serve."""
    fakes: list[FakeServe] = []
    for name in ("status", "delete", "shutdown"):
        monkeypatch.setattr(serve, name, lambda *arguments, name=name: getattr(fakes[0], name)(*arguments))
    return fakes


def test_serve_ends_with_its_last_application(played: list[FakeServe]) -> None:
    played.append(FakeServe(APP_NAME, "rayward-health"))
    stop_applications(1.0)
    assert played[0].acts == [APP_NAME, "shutdown"]


def test_applications_of_others_live_on(played: list[FakeServe]) -> None:
    played.append(FakeServe(APP_NAME, "rayward-health", "rayward-feedback", "theirs"))
    stop_applications(1.0)
    assert (set(played[0].applications), played[0].acts[0]) == ({"theirs"}, APP_NAME)
    assert "shutdown" not in played[0].acts


def test_a_long_drain_is_waited_for_and_an_endless_one_is_not(played: list[FakeServe]) -> None:
    played.append(FakeServe(APP_NAME, waits=3))
    stop_applications(1000.0)
    assert played[0].acts == [APP_NAME] * 4 + ["shutdown"]
    played[0] = FakeServe(APP_NAME, waits=10**9)
    stop_applications(-1000.0)
    assert played[0].acts == [APP_NAME, "shutdown"]


def test_a_serve_that_is_lost_is_shut_down(played: list[FakeServe]) -> None:
    class Lost(FakeServe):
        def status(self) -> SimpleNamespace:
            raise RayServeException("no controller")

    played.append(Lost())
    stop_applications(1.0)
    assert played[0].acts == ["shutdown"]
