"""One engine replica: Ray's LLM server, told which policy version it holds, and able to take a newer one without a stop."""

import asyncio
import logging
import multiprocessing
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer
from vllm.v1.engine.exceptions import EngineDeadError

from actors.sources.tensor_shapes import WEIGHT_PATTERN
from cluster.errors import DataError, WeightMismatchError
from serving.engine_watch import EngineWatch
from serving.policy_folder import PolicyFolder, check_same_model, resolve_policy
from serving.version_gate import VersionGate

logger = logging.getLogger("ray.serve")  # goes to the replica's file among Serve's logs

FOLLOW_INTERVAL_S: Final = 1.0
STREAM_ERROR: Final = 'data: {"error"'  # how vLLM begins the event before a stream's early end


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedBy:
    """What answers a request: the first item of a response. Produced by `PolicyServer`, consumed by `PolicyIngress`."""

    policy_version: int | None  # None: the folder is no version of a run


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLost:
    """The engine is dead. Produced by `PolicyServer` in place of, or within, a response; consumed by `PolicyIngress`."""

    had_begun: bool  # whether the engine had taken this request
    has_crashed: bool = False  # rather than ended from outside
    was_alone: bool = False  # with this request


class PolicyServer(LLMServer):
    """Responses are Ray's, behind one `ServedBy` each: the version that sampled the response, whole.

    An engine's death is an item of its own, `EngineLost`: before `ServedBy` where the engine never took the request.
    """

    async def __init__(  # type: ignore[misc]  # as in the class below: Serve awaits it
        self, llm_config: LLMConfig, *, policy: PolicyFolder, followed: Path | None
    ) -> None:
        """`llm_config` names the folder of `policy`. `followed`: a run directory; its newer policies are taken as they appear."""
        await super().__init__(llm_config)
        self._policy = policy
        self._gate = VersionGate(policy.policy_version)
        self._watch = EngineWatch(multiprocessing.active_children())
        self._loaded_from = policy.path  # what the engine was built for
        self._following: asyncio.Task[None] | None = None
        if followed is not None:
            await self._take_newest(followed)  # a replica that replaces another must not fall back
            self._following = asyncio.create_task(self._follow(followed))

    async def chat(self, request: Any, raw_request_info: Any = None) -> AsyncIterator[Any]:
        """`ServedBy`, then what Ray's server yields."""
        async for item in self._answer(super().chat, request, raw_request_info):
            yield item

    async def completions(self, request: Any, raw_request_info: Any = None) -> AsyncIterator[Any]:
        """`ServedBy`, then what Ray's server yields."""
        async for item in self._answer(super().completions, request, raw_request_info):
            yield item

    async def _answer(
        self, ask: Callable[[Any, Any], Awaitable[AsyncIterator[Any]]], request: Any, raw_request_info: Any
    ) -> AsyncIterator[Any]:
        async with self._gate.request() as policy_version:
            if await self._is_dead():
                yield EngineLost(had_begun=False)
                return
            yield ServedBy(policy_version=policy_version)
            with self._watch.request():
                try:
                    async for item in await ask(request, raw_request_info):
                        if is_stream_error(item) and await self._is_dead():
                            yield self._lost()
                            return
                        yield item
                except EngineDeadError:
                    yield self._lost()

    async def _is_dead(self) -> bool:
        try:
            await super().check_health()
        except EngineDeadError:
            return True
        return False

    def _lost(self) -> EngineLost:
        return EngineLost(had_begun=True, has_crashed=self._watch.crashed(), was_alone=self._watch.num_at_death() == 1)

    async def policy_version(self) -> int | None:
        """The version that new requests meet."""
        return self._gate.version

    async def check_health(self) -> None:
        """Raises where the engine is dead, or where a change of weights ended half-way; Serve then replaces this replica."""
        if self._following is not None and self._following.done():
            self._following.result()
        await super().check_health()

    async def _follow(self, run_dir: Path) -> None:
        while True:
            await asyncio.sleep(FOLLOW_INTERVAL_S)
            await self._take_newest(run_dir)

    async def _take_newest(self, run_dir: Path) -> None:
        try:
            newest = await asyncio.to_thread(resolve_policy, str(run_dir))
            if newest.path == self._policy.path:
                return
            self._policy = newest  # one that cannot be served is told once
            await asyncio.to_thread(check_same_model, newest.path, self._loaded_from)
        except (DataError, WeightMismatchError) as error:  # also a run directory that is gone: what is served stays
            logger.error("not served: %s", error)
            return
        await self._replace_weights(newest)

    async def _replace_weights(self, policy: PolicyFolder) -> None:
        """No request is inside meanwhile, and none is let in again where this ends half-way."""
        async with self._gate.change(policy.policy_version):
            await self.pause(mode="wait", clear_cache=True)  # the prefix cache belongs to the old weights
            await self.collective_rpc("start_weight_update")
            for path in sorted(policy.path.glob(WEIGHT_PATTERN)):
                await self.collective_rpc("update_weights", kwargs={"update_info": {"path": str(path)}})
            await self.collective_rpc("finish_weight_update")
            await self.resume()
        logger.info("policy version %s is served", policy.policy_version)


def is_stream_error(item: Any) -> bool:
    """Whether an item of a stream, events that were ready together, holds the one before its early end."""
    return isinstance(item, list) and any(event.startswith(STREAM_ERROR) for event in item)
