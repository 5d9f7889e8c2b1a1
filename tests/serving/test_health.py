"""What `/health` says of the states that Serve's controller reports. No Ray."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, DeploymentStatusOverview, ReplicaState, ServeStatus

from serving import health
from serving.health import build_health_route
from serving.versions.followed_versions import FollowedVersions


def status(**running: int) -> ServeStatus:
    deployments = {
        name: DeploymentStatusOverview(
            status="HEALTHY",
            status_trigger="UNSPECIFIED",
            message="",
            replica_states={ReplicaState.RUNNING: number, ReplicaState.STARTING: 1} if number else {ReplicaState.STARTING: 1},
        )
        for name, number in running.items()
    }
    application = ApplicationStatusOverview(
        status=ApplicationStatus.RUNNING, message="", last_deployed_time_s=0.0, deployments=deployments
    )
    return ServeStatus(applications={"policy": application, "other": replace(application, deployments={})})


def ask(app_name: str, versions: FollowedVersions | None = None) -> tuple[int, dict[str, Any]]:
    async def get() -> httpx.Response:
        transport = httpx.ASGITransport(build_health_route(app_name, versions))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get("/health")

    reply = asyncio.run(get())
    return reply.status_code, reply.json()


@pytest.mark.parametrize(("running", "code"), [({"doors": 2, "engines": 1}, 200), ({"doors": 2, "engines": 0}, 503), ({}, 503)])
def test_every_deployment_needs_a_replica_that_runs(monkeypatch: pytest.MonkeyPatch, running: dict[str, int], code: int) -> None:
    monkeypatch.setattr(serve, "status", lambda: status(**running))
    assert ask("policy") == (code, {"status": "ok" if code == 200 else "unavailable", "replicas": running})


def test_an_application_that_is_not_there_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "status", lambda: status(doors=1))
    assert ask("missing") == (503, {"status": "unavailable", "replicas": {}})


def ask_often(app_name: str, times: int, at_end: Callable[[], object] = lambda: None) -> list[int]:
    """The codes of so many requests at once; `at_end` is called before the loop waits for its threads."""

    async def get() -> list[int]:
        transport = httpx.ASGITransport(build_health_route(app_name, None))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            replies = await asyncio.gather(*[client.get("/health") for _ in range(times)])
            at_end()
            return [reply.status_code for reply in replies]

    return asyncio.run(get())


class Controller:
    """Says the same to each who asks, after `wait`."""

    def __init__(self, wait: Callable[[], object] = lambda: None) -> None:
        self._wait = wait
        self.num_asked = 0

    def status(self) -> ServeStatus:
        self.num_asked += 1
        self._wait()
        return status(doors=1)


def test_many_who_ask_at_once_cost_one_question(monkeypatch: pytest.MonkeyPatch) -> None:
    controller = Controller()
    monkeypatch.setattr(serve, "status", controller.status)
    assert (ask_often("policy", 50), controller.num_asked) == ([200] * 50, 1)


def test_a_controller_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    controller = Controller(wait=over.wait)
    monkeypatch.setattr(health, "ASK_FOR_S", 0.02)
    monkeypatch.setattr(serve, "status", controller.status)
    assert (ask_often("policy", 3, at_end=over.set), controller.num_asked) == ([503] * 3, 1)


def test_a_controller_that_is_lost_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> ServeStatus:
        raise RayServeException("no controller")

    monkeypatch.setattr(serve, "status", lost)
    assert ask("policy") == (503, {"status": "unavailable", "replicas": {}})


def test_versions_that_are_set_aside_are_named_without_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run" / "policies" / "v000002").mkdir(parents=True)
    versions = FollowedVersions(tmp_path / "run", tmp_path / "state")
    bad = versions.newest(None)
    assert bad is not None
    versions.note_set_aside(bad, "contract", f"{tmp_path} is bad")
    monkeypatch.setattr(serve, "status", lambda: status(engines=1))
    assert ask("policy", versions) == (200, {"status": "ok", "replicas": {"engines": 1}, "set_aside": {"v000002": "contract"}})


@pytest.mark.parametrize(("method", "path", "code"), [("POST", "/health", 405), ("GET", "/health/", 404), ("GET", "/x", 404)])
def test_other_routes_answer_in_openais_form(method: str, path: str, code: int) -> None:
    async def ask_once() -> httpx.Response:
        transport = httpx.ASGITransport(build_health_route("policy", None))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path)

    reply = asyncio.run(ask_once())
    assert (reply.status_code, reply.json()["error"]["code"]) == (code, "no_such_route")
