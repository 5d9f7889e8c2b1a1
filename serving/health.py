"""`GET /health`: whether a policy can be asked.

A Serve application of its own, which asks Serve's controller and not an engine: a health check never waits behind requests, and
is not turned away when they are. The controller is asked once in `FRESH_S`, however many ask here, and for `ASK_FOR_S` at most.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatusOverview, LoggingConfig, ReplicaState, ServeStatus

from serving.config import RequestLimits
from serving.guard.application import Guard, build_application
from serving.versions.followed_versions import FollowedVersions
from serving.whole_path import WholePath

HEALTH_APP_NAME: Final = "rayward-health"
HEALTH_ROUTE: Final = "/health"
FRESH_S: Final = 1.0
ASK_FOR_S = 5.0
REPLY_WITHIN_S = 10.0  # longer than the controller is asked


def health_target(app_name: str, versions: FollowedVersions | None, logging_config: LoggingConfig) -> serve.RunTarget:
    """What Serve runs beside the application `app_name`. `versions` of the run that it follows, if it does."""

    def build() -> FastAPI:
        return build_health_route(app_name, versions)

    endpoint = serve.deployment(serve.ingress(build)(), name="HealthEndpoint", num_replicas=1, ray_actor_options={"num_cpus": 0})
    return serve.RunTarget(target=endpoint.bind(), name=HEALTH_APP_NAME, route_prefix=HEALTH_ROUTE, logging_config=logging_config)


def build_health_route(app_name: str, versions: FollowedVersions | None) -> FastAPI:
    """200 where every deployment of `app_name` has a replica that runs, 503 otherwise; with the number of replicas of each.

    Where a run is followed, also why which of its versions are not served.
    """
    guard = Guard(limits=RequestLimits(), timeout_s=REPLY_WITHIN_S, log_folder=None)
    app = build_application(guard, None, title="Rayward health", has_schema=False)
    replicas = _Replicas(app_name)

    @app.get(HEALTH_ROUTE)
    async def health() -> JSONResponse:
        running = await replicas.running()
        is_up = bool(running) and all(running.values())
        body: dict[str, Any] = {"status": "ok" if is_up else "unavailable", "replicas": running}
        if versions is not None:
            body["set_aside"] = await asyncio.to_thread(versions.set_aside)
        return JSONResponse(body, status_code=200 if is_up else 503)

    app.add_middleware(WholePath)
    return app


class _Replicas:
    """Replicas that run, by deployment, as Serve's controller said last. For one event loop."""

    def __init__(self, app_name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._app_name = app_name
        self._clock = clock
        self._said: dict[str, int] = {}
        self._said_at_s = -FRESH_S
        self._asking: asyncio.Task[ServeStatus] | None = None

    async def running(self) -> dict[str, int]:
        """Empty where the controller does not answer."""
        if self._clock() - self._said_at_s < FRESH_S:
            return self._said
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(asyncio.to_thread(serve.status))
        try:
            async with asyncio.timeout(ASK_FOR_S):
                status = await asyncio.shield(self._asking)  # one thread waits for a controller that hangs, not one a request
        except (TimeoutError, RayError, RayServeException):
            return {}
        self._said, self._said_at_s = running_replicas(status.applications.get(self._app_name)), self._clock()
        return self._said


def running_replicas(application: ApplicationStatusOverview | None) -> dict[str, int]:
    """By deployment."""
    if application is None:
        return {}
    return {name: deployment.replica_states.get(ReplicaState.RUNNING, 0) for name, deployment in application.deployments.items()}
