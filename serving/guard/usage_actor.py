"""The counters of keys as one actor, which all front doors ask.

An actor and no Serve application: a call of a Serve handle costs several times the processor time of an actor's, on both sides,
and each request makes three. Detached, as Serve's own processes are: it ends with the endpoint and not with this process.
"""

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar

import ray
from ray.exceptions import RayError

from serving.api_errors import Refusal, retry_after
from serving.config import KeyQuota
from serving.guard.quota import Admission, KeyUsage
from serving.guard.request_log import serve_logger

if TYPE_CHECKING:
    from ray.actor import ActorProxy

ACTOR_NAME: Final = "rayward-usage"
NAMESPACE: Final = "rayward"
ANSWER_WITHIN_S: Final = 5.0  # a lost counter is replaced in a few seconds; no request passes uncounted meanwhile
AnswerT = TypeVar("AnswerT")


def start_usage(quota: KeyQuota, *, lease_s: float) -> None:
    """Where keys are asked for, in place of one that an endpoint before this one left. `lease_s`: no request takes longer."""
    stop_usage()
    options = {"name": ACTOR_NAME, "namespace": NAMESPACE, "lifetime": "detached", "max_restarts": -1, "num_cpus": 0}
    ray.remote(UsageServer).options(**options).remote(quota, lease_s)


def stop_usage() -> None:
    """Where there is one."""
    with suppress(ValueError):  # there is none
        ray.kill(ray.get_actor(ACTOR_NAME, namespace=NAMESPACE))


class UsageServer:
    """`KeyUsage` in a process of its own, one call after the other."""

    def __init__(self, quota: KeyQuota, lease_s: float) -> None:
        self._usage = KeyUsage(quota, lease_s=lease_s)

    @ray.method
    def admit(self, key: str, request_id: str) -> Admission:
        """See `KeyUsage`."""
        return self._usage.admit(key, request_id)

    @ray.method
    def spend(self, key: str, tokens: int) -> Admission:
        """See `KeyUsage`."""
        return self._usage.spend(key, tokens)

    @ray.method
    def release(self, key: str, request_id: str) -> None:
        """See `KeyUsage`."""
        self._usage.release(key, request_id)


class RemoteUsage:
    """The counter, from within a front door. Pickles: the actor is looked up where it is first used."""

    def __init__(self) -> None:
        self._actor: ActorProxy[UsageServer] | None = None

    async def admit(self, key: str, request_id: str) -> Admission:
        """Raises `Refusal` where the counter does not answer."""
        return await _answered(self._counter().admit.remote(key, request_id))

    async def spend(self, key: str, tokens: int) -> Admission:
        """Raises `Refusal` where the counter does not answer."""
        return await _answered(self._counter().spend.remote(key, tokens))

    def release(self, key: str, request_id: str) -> None:
        """Nobody waits for it; one that is lost ends with its lease. Called after `admit`."""
        self._counter().release.remote(key, request_id)

    def _counter(self) -> "ActorProxy[UsageServer]":
        if self._actor is None:
            try:
                self._actor = ray.get_actor(ACTOR_NAME, namespace=NAMESPACE)
            except ValueError as error:  # the endpoint starts or stops
                raise _cannot_count(error) from error
        return self._actor


async def _answered(answer: Awaitable[AnswerT]) -> AnswerT:
    try:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            return await answer
    except (TimeoutError, RayError) as error:
        raise _cannot_count(error) from error


def _cannot_count(error: Exception) -> Refusal:
    serve_logger.error("the counter of keys does not answer: %s", type(error).__name__)
    return Refusal(503, "keys cannot be counted now", code="keys_unavailable", headers=retry_after(1))
