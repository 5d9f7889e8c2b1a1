"""The counters of keys as a Serve application of one replica, without a route; front doors ask it."""

import asyncio
from collections.abc import Awaitable
from typing import Final, TypeVar

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from serving.api_errors import Refusal, retry_after
from serving.config import KeyQuota
from serving.guard.quota import Admission, KeyUsage
from serving.guard.request_log import serve_logger

USAGE_APP_NAME: Final = "rayward-usage"
ANSWER_WITHIN_S: Final = 5.0  # a lost counter is replaced in a few seconds; no request passes uncounted meanwhile
MAX_ONGOING_REQUESTS: Final = 1000  # each takes microseconds
AnswerT = TypeVar("AnswerT")


def usage_target(quota: KeyQuota, *, lease_s: float, logging_config: LoggingConfig) -> serve.RunTarget:
    """What Serve runs beside the policy where keys are asked for. `lease_s`: no request is in progress for longer."""
    counter = serve.deployment(
        UsageServer,
        name="KeyUsage",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        health_check_period_s=1.0,
    )
    return serve.RunTarget(
        target=counter.bind(quota, lease_s), name=USAGE_APP_NAME, route_prefix=None, logging_config=logging_config
    )


class UsageServer:
    """`KeyUsage` behind a handle. Coroutines, so that calls run one after the other."""

    def __init__(self, quota: KeyQuota, lease_s: float) -> None:
        self._usage = KeyUsage(quota, lease_s=lease_s)

    async def admit(self, key: str, request_id: str) -> Admission:
        """See `KeyUsage`."""
        return self._usage.admit(key, request_id)

    async def spend(self, key: str, tokens: int) -> Admission:
        """See `KeyUsage`."""
        return self._usage.spend(key, tokens)

    async def release(self, key: str, request_id: str) -> None:
        """See `KeyUsage`."""
        self._usage.release(key, request_id)


class RemoteUsage:
    """The counter, from within a front door. Pickles: the handle is made where it is first used."""

    def __init__(self) -> None:
        self._handle: DeploymentHandle | None = None

    async def admit(self, key: str, request_id: str) -> Admission:
        """Raises `Refusal` where the counter does not answer."""
        return await _answered(self._counter().admit.remote(key, request_id))

    async def spend(self, key: str, tokens: int) -> Admission:
        """Raises `Refusal` where the counter does not answer."""
        return await _answered(self._counter().spend.remote(key, tokens))

    def release(self, key: str, request_id: str) -> None:
        """Nobody waits for it; one that is lost ends with its lease."""
        self._counter().release.remote(key, request_id)

    def _counter(self) -> DeploymentHandle:
        if self._handle is None:
            self._handle = serve.get_app_handle(USAGE_APP_NAME)
        return self._handle


async def _answered(answer: Awaitable[AnswerT]) -> AnswerT:
    try:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            return await answer
    except (TimeoutError, RayError, RayServeException) as error:
        serve_logger.error("the counter of keys does not answer: %s", type(error).__name__)
        raise Refusal(503, "keys cannot be counted now", code="keys_unavailable", headers=retry_after(1)) from error
