"""What `/health` says of the states that Serve's controller reports. No Ray."""

import asyncio
from dataclasses import replace

import httpx
import pytest
from ray import serve
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, DeploymentStatusOverview, ReplicaState, ServeStatus

from serving.health import build_health_route


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


def ask(app_name: str) -> tuple[int, dict[str, int]]:
    async def get() -> httpx.Response:
        transport = httpx.ASGITransport(build_health_route(app_name))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get("/health")

    reply = asyncio.run(get())
    return reply.status_code, reply.json()["replicas"]


@pytest.mark.parametrize(("running", "code"), [({"doors": 2, "engines": 1}, 200), ({"doors": 2, "engines": 0}, 503), ({}, 503)])
def test_every_deployment_needs_a_replica_that_runs(monkeypatch: pytest.MonkeyPatch, running: dict[str, int], code: int) -> None:
    monkeypatch.setattr(serve, "status", lambda: status(**running))
    assert ask("policy") == (code, running)


def test_an_application_that_is_not_there_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "status", lambda: status(doors=1))
    assert ask("missing") == (503, {})
