"""One engine replica: Ray's LLM server, told which policy version it holds, and able to take a newer one without a stop."""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer

from actors.sources.tensor_shapes import weight_files
from cluster.errors import DataError, WeightMismatchError
from serving.policy_folder import PolicyFolder, check_same_model, resolve_policy
from serving.version_gate import VersionGate

logger = logging.getLogger("ray.serve")  # goes to the replica's file among Serve's logs

FOLLOW_INTERVAL_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedBy:
    """What answers a request: the first item of a response. Produced by `PolicyServer`, consumed by `PolicyIngress`."""

    policy_version: int | None  # None: the folder is no version of a run


class PolicyServer(LLMServer):
    """Responses are Ray's, behind one `ServedBy` each: the version that sampled the response, whole."""

    async def __init__(  # type: ignore[misc]  # as in the class below: Serve awaits it
        self, llm_config: LLMConfig, *, policy: PolicyFolder, followed: Path | None
    ) -> None:
        """`llm_config` names the folder of `policy`. `followed`: a run directory; its newer policies are taken as they appear."""
        await super().__init__(llm_config)
        self._policy = policy
        self._gate = VersionGate(policy.policy_version)
        self._loaded_from = policy.path  # what the engine was built for
        self._following: asyncio.Task[None] | None = None
        if followed is not None:
            await self._take_newest(followed)  # a replica that replaces another must not fall back
            self._following = asyncio.create_task(self._follow(followed))

    async def chat(self, request: Any, raw_request_info: Any = None) -> AsyncIterator[Any]:
        """`ServedBy`, then what Ray's server yields."""
        async with self._gate.request() as policy_version:
            yield ServedBy(policy_version=policy_version)
            async for item in await super().chat(request, raw_request_info):
                yield item

    async def completions(self, request: Any, raw_request_info: Any = None) -> AsyncIterator[Any]:
        """`ServedBy`, then what Ray's server yields."""
        async with self._gate.request() as policy_version:
            yield ServedBy(policy_version=policy_version)
            async for item in await super().completions(request, raw_request_info):
                yield item

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
            files = await asyncio.to_thread(weight_files, newest.path)
        except (DataError, WeightMismatchError) as error:  # also a run directory that is gone: what is served stays
            logger.error("not served: %s", error)
            return
        await self._replace_weights(newest, files)

    async def _replace_weights(self, policy: PolicyFolder, files: list[Path]) -> None:
        """No request is inside meanwhile, and none is let in again where this ends half-way."""
        async with self._gate.change(policy.policy_version):
            await self.pause(mode="wait", clear_cache=True)  # the prefix cache belongs to the old weights
            await self.collective_rpc("start_weight_update")
            for path in files:
                await self.collective_rpc("update_weights", kwargs={"update_info": {"path": str(path)}})
            await self.collective_rpc("finish_weight_update")
            await self.resume()
        logger.info("policy version %s is served", policy.policy_version)
