"""`GET /health`: whether a policy can be asked.

A Serve application of its own, which asks Serve's controller and not an engine: a health check never waits behind requests, and
is not turned away when they are.
"""

import asyncio
from typing import Any, Final

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from ray import serve
from ray.serve.schema import ApplicationStatusOverview, LoggingConfig, ReplicaState

from serving.followed_versions import FollowedVersions
from serving.whole_path import WholePath

HEALTH_APP_NAME: Final = "rayward-health"
HEALTH_ROUTE: Final = "/health"


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
    app = FastAPI(openapi_url=None, redirect_slashes=False)

    @app.get(HEALTH_ROUTE)
    async def health() -> JSONResponse:
        status = await asyncio.to_thread(serve.status)
        replicas = running_replicas(status.applications.get(app_name))
        is_up = bool(replicas) and all(replicas.values())
        body: dict[str, Any] = {"status": "ok" if is_up else "unavailable", "replicas": replicas}
        if versions is not None:
            body["set_aside"] = await asyncio.to_thread(versions.set_aside)
        return JSONResponse(body, status_code=200 if is_up else 503)

    app.add_middleware(WholePath)
    return app


def running_replicas(application: ApplicationStatusOverview | None) -> dict[str, int]:
    """By deployment."""
    if application is None:
        return {}
    return {name: deployment.replica_states.get(ReplicaState.RUNNING, 0) for name, deployment in application.deployments.items()}
